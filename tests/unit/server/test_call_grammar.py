# SPDX-License-Identifier: Apache-2.0
"""Calls held to their schemas: whatever a model takes of the allowed tokens, the parser reads valid calls, or the answer is valid."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import ziggurat
from ziggurat.engine.closing import first_tokens
from ziggurat.engine.grammar import GrammarCompiler, GrammarSpec
from ziggurat.engine.tokenizer import Tokenizer
from ziggurat.errors import RequestError
from ziggurat.server.call_grammar import calls_schema, either_lark, strict_lark
from ziggurat.server.parsers import PARSERS, MessageReader, RequiredCalls
from ziggurat.server.turns import Tool

TOKENIZER = Tokenizer.load(Path(ziggurat.__file__).parent / "assets" / "embedded")
EOS_IDS = (0, 5)
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 6}, "next": {"$ref": "#/$defs/year"}},
    "required": ["name", "next"],
    "$defs": {"year": {"type": "integer", "minimum": 1, "maximum": 99}},
}
ANSWER = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
SCHEMAS: dict[str, Any] = {"f": PERSON, "g": {"type": "object", "additionalProperties": False}}


def tool(name: str, **more: Any) -> Tool:
    return Tool.model_validate({"type": "function", "function": {"name": name, **more}})


TOOLS = [tool("f", parameters=PERSON, strict=True), tool("g", strict=True)]


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    return GrammarCompiler(TOKENIZER, 1024, EOS_IDS, 4096)


def read(
    compiler: GrammarCompiler, spec: GrammarSpec, parser: Any, seed: int, begin: str = ""
) -> dict[str, Any] | None:
    """The message of a model that says ``begin`` and then takes any allowed token; None if it did not end."""
    mask, random_ = compiler.mask(spec), random.Random(seed)
    state, reader = mask.start([]), MessageReader(None, parser, make_id=lambda: "id")
    detokenizer = TOKENIZER.stream()
    planned = TOKENIZER.encode(begin, add_special_tokens=False)
    for _ in range(200):
        token_id = planned.pop(0) if planned else random_.choice(first_tokens(mask.mask(state), 1024))
        if token_id in EOS_IDS:
            reader.feed(detokenizer.flush())
            reader.finish()
            return reader.message()
        reader.feed(detokenizer.add(token_id))
        state = mask.advance(state, token_id)
    return None


def check_calls(message: dict[str, Any]) -> int:
    for call in message.get("tool_calls", ()):
        function = call["function"]
        jsonschema.validate(json.loads(function["arguments"]), SCHEMAS[function["name"]])
    return len(message.get("tool_calls", ()))


@pytest.mark.parametrize("max_calls", [1, None])
def test_required_calls(compiler: GrammarCompiler, max_calls: int | None) -> None:
    spec = GrammarSpec("json_schema", json.dumps(calls_schema(TOOLS, max_calls)))
    found = [read(compiler, spec, RequiredCalls(), seed) for seed in range(12)]
    counts = [check_calls(message) for message in found if message is not None]
    assert len(counts) >= 8 and min(counts) >= 1
    assert max(counts) == 1 if max_calls else max(counts) > 1


@pytest.mark.parametrize("is_single", [True, False])
def test_calls_or_an_answer(compiler: GrammarCompiler, is_single: bool) -> None:
    spec = GrammarSpec("lark", either_lark(TOOLS, ANSWER, is_single=is_single))
    counts = []
    for seed in range(20):
        message = read(compiler, spec, PARSERS.get("hermes")(), seed)
        if message is None:
            continue
        counts.append(check_calls(message))
        if not counts[-1]:
            jsonschema.validate(json.loads(message["content"]), ANSWER)
        else:
            assert message["content"] is None
    assert len(counts) >= 12 and {0, 1} <= set(counts)
    assert (max(counts) == 1) == is_single


def test_strict_functions_within_free_text(compiler: GrammarCompiler) -> None:
    spec = GrammarSpec("lark", strict_lark(TOOLS))
    call = '<tool_call>\n{"name":"f","arguments":'
    ended = [read(compiler, spec, PARSERS.get("hermes")(), seed, f"Let me see. {call}") for seed in range(8)]
    messages = [message for message in ended if message is not None]
    assert messages and all(check_calls(message) >= 1 for message in messages)
    mask = compiler.mask(spec)
    state = mask.start([])
    for token_id in TOKENIZER.encode("Just text, and <b>.", add_special_tokens=False):
        state = mask.advance(state, token_id)
    assert set(first_tokens(mask.mask(state), 1024)) >= set(EOS_IDS), "a text may end without a call"


def test_the_librarys_own_options_are_refused(compiler: GrammarCompiler) -> None:
    with pytest.raises(RequestError, match="x-guidance"):
        strict_lark([tool("f", parameters={"x-guidance": {}}, strict=True)])
