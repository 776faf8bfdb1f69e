# SPDX-License-Identifier: Apache-2.0
"""Languages through llguidance: walks that a mask allows end in the language (jsonschema and re are oracles), and none is too costly."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.schemas import make_schemas
from ziggurat.engine import grammar as grammar_module
from ziggurat.engine import grammar_check
from ziggurat.engine.grammar import MAX_CACHED, MAX_TEXT_BYTES, GrammarCompiler, GrammarMask, GrammarSpec
from ziggurat.engine.narrow_schema import is_costly, narrowed
from ziggurat.engine.thinking import ThinkFirst
from ziggurat.engine.tokenizer import Tokenizer
from ziggurat.errors import EngineError, QueueFull, RequestError, UnsupportedFeature

FOLDER = Path(grammar_module.__file__).parents[1] / "assets" / "embedded"
VOCAB_SIZE, EOS_IDS, MAX_MODEL_LEN = 1024, (0, 5), 4096
TOKENIZER = Tokenizer.load(FOLDER)


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    return GrammarCompiler(TOKENIZER, VOCAB_SIZE, EOS_IDS, MAX_MODEL_LEN)


def schema_spec(schema: Any) -> GrammarSpec:
    return GrammarSpec("json_schema", json.dumps(schema))


def allowed_ids(mask: Any, state: Any) -> list[int]:
    bits = np.unpackbits(np.frombuffer(mask.mask(state), np.uint8), count=VOCAB_SIZE, bitorder="little")
    return [int(each) for each in np.flatnonzero(bits)]


def walk(mask: Any, random_: random.Random, max_tokens: int, prompt_len: int = 10) -> tuple[list[int], bool]:
    """(tokens, has ended) of a model that takes any allowed token."""
    state, tokens = mask.start(range(prompt_len)), []
    for _ in range(max_tokens):
        token_id = random_.choice(allowed_ids(mask, state))
        if token_id in EOS_IDS:
            return tokens, True
        tokens.append(token_id)
        state = mask.advance(state, token_id)
    return tokens, False


def test_random_walks_end_in_the_schema(compiler: GrammarCompiler) -> None:
    """The worst model there is: one that takes any token. Most of its answers end within 200 tokens, and all that end are valid."""
    num_ended = 0
    schemas = make_schemas(60, seed=1)
    for number, schema in enumerate(schemas):
        tokens, has_ended = walk(compiler.mask(schema_spec(schema), 200), random.Random(number), 200)
        num_ended += has_ended
        if has_ended:
            jsonschema.Draft202012Validator(schema).validate(json.loads(TOKENIZER.decode(tokens)))
    assert num_ended >= 0.9 * len(schemas)


def test_a_text_that_would_not_end_is_closed_with_its_last_tokens(compiler: GrammarCompiler) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "string"}, "b": {"type": "number"}},
        "required": ["a", "b"],
    }
    mask = compiler.mask(schema_spec(schema), 40)
    letter = TOKENIZER.encode("a", add_special_tokens=False)[0]
    state, tokens = mask.start([1, 2]), []
    while True:
        ids = allowed_ids(mask, state)
        token_id = letter if letter in ids else ids[0]
        if token_id in EOS_IDS:
            break
        tokens.append(token_id)
        state = mask.advance(state, token_id)
    answer = json.loads(TOKENIZER.decode(tokens))
    assert set(answer) == {"a", "b"} and set(answer["a"]) == {"a"} and len(answer["a"]) > 10
    assert 30 < len(tokens) + 1 <= 40
    assert mask.was_closed(len(tokens) + 1) and not mask.was_closed(len(tokens))


def test_the_context_closes_too_and_an_early_end_is_the_models_own(compiler: GrammarCompiler) -> None:
    mask = compiler.mask(schema_spec({"type": "array", "items": {"type": "boolean"}}))
    tokens, has_ended = walk(mask, random.Random(3), 100, prompt_len=MAX_MODEL_LEN - 30)
    assert has_ended and len(tokens) < 30
    short = compiler.mask(schema_spec({"type": "boolean"}), 100)
    tokens, has_ended = walk(short, random.Random(3), 100)
    assert has_ended and not short.was_closed(len(tokens) + 1)


def test_states_are_values(compiler: GrammarCompiler) -> None:
    mask = compiler.mask(GrammarSpec("choice", '["ab","ac"]'))
    a, b, c = (TOKENIZER.encode(text, add_special_tokens=False)[0] for text in "abc")
    first = mask.start([])
    second = mask.advance(first, a)
    assert (
        set(allowed_ids(mask, mask.advance(second, b)))
        == set(EOS_IDS)
        == set(allowed_ids(mask, mask.advance(second, c)))
    )
    assert a in allowed_ids(mask, first) and {b, c} <= set(allowed_ids(mask, second))
    ended = mask.advance(mask.advance(second, b), EOS_IDS[0])
    assert set(allowed_ids(mask, mask.advance(ended, EOS_IDS[1]))) == set(EOS_IDS), "ignore_eos goes on"


@pytest.mark.parametrize(
    ("kind", "text", "pattern"),
    [
        ("regex", "[a-c]{2,4}-[0-9]+(x|yy)", "[a-c]{2,4}-[0-9]+(x|yy)"),
        ("choice", '["a \\"quote\\"", "line\\nbreak", "é\\\\n", "[.*]"]', r'a "quote"|line\nbreak|é\\n|\[\.\*\]'),
        ("grammar", 'start: "n" NUMBER\nNUMBER: /[0-9]{1,3}/', r"n\d{1,3}"),
        ("grammar", 'root ::= "yes" | "no " item+\nitem ::= [a-b]', r"yes|no [ab]+"),
    ],
)
def test_other_languages(compiler: GrammarCompiler, kind: Any, text: str, pattern: str) -> None:
    ends = []
    for number in range(20):
        tokens, has_ended = walk(compiler.mask(GrammarSpec(kind, text)), random.Random(number), 60)
        if has_ended:
            ends.append(TOKENIZER.decode(tokens))
    assert len(ends) >= 10
    for answer in ends:
        assert re.fullmatch(pattern, answer), answer


DEEP: Any = {"type": "array"}
for _ in range(300):
    DEEP = {"type": "array", "items": DEEP}
HOSTILE = {
    "not json": ("json_schema", "{"),
    "unknown type": ("json_schema", '{"type": "strin"}'),
    "not": ("json_schema", '{"not": {"type": "string"}}'),
    "unique items": ("json_schema", '{"type": "array", "uniqueItems": true}'),
    "overlapping oneOf": ("json_schema", '{"oneOf": [{"type": "string"}, {"type": "string", "minLength": 3}]}'),
    "remote": ("json_schema", '{"$ref": "http://example.com/x.json"}'),
    "look-ahead": ("json_schema", '{"type": "string", "pattern": "^(?=a)b"}'),
    "library options": ("json_schema", '{"x-guidance": {"lenient": true}}'),
    "deep": ("json_schema", json.dumps(DEEP)),
    "deeper": ("json_schema", '{"items":' * 20000 + "{}" + "}" * 20000),
    "exponential": (
        "json_schema",
        json.dumps({"allOf": [{"type": "string", "pattern": f"a{{{n}}}"} for n in range(60)]}),
    ),
    "wide": ("json_schema", json.dumps({"properties": {f"p{n}": {} for n in range(20_000)}})),
    "endless": ("json_schema", json.dumps({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}})),
    "group": ("regex", "("),
    "back-reference": ("regex", r"(a)\1"),
    "nested groups": ("regex", "(" * 50_000 + "a" + ")" * 50_000),
    "repeated": ("regex", "(((a{1000}){1000}){1000})"),
    "unknown rule": ("grammar", "start: foo"),
    "nested rules": ("grammar", "start: " + "(" * 5000 + '"a"' + ")" * 5000),
    "large": ("regex", "a" * (MAX_TEXT_BYTES + 1)),
}


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_what_cannot_be_had_is_refused(compiler: GrammarCompiler, name: str) -> None:
    kind, text = HOSTILE[name]
    with pytest.raises(RequestError) as failure:
        compiler.mask(GrammarSpec(kind, text, "guided_x"), 300)  # type: ignore[arg-type]
    assert (failure.value.param, failure.value.code) == ("guided_x", "invalid_grammar")
    assert str(failure.value).startswith("guided_x: ") and len(str(failure.value)) < 400


def test_what_shows_on_the_way_only_is_the_requests_fault(compiler: GrammarCompiler) -> None:
    wide = {"type": "object", "properties": {f"p{number}": {} for number in range(1000)}}
    schema = {"type": "array", "prefixItems": [{"type": "string", "minLength": 9}, wide], "minItems": 2}
    mask = compiler.mask(schema_spec(schema), 300)
    with pytest.raises(EngineError, match="too complex to follow: "):
        walk(mask, random.Random(0), 300)
    assert mask.failure is not None and mask.failure.startswith("too complex to follow")


def test_catastrophic_expressions_are_harmless_or_refused_and_steps_stay_short(compiler: GrammarCompiler) -> None:
    for pattern in ("(a+)+", "(a|aa)+b", "(.*a){12}", "(a|b)*a(a|b){30}", r"(\w+\s?)+"):
        mask = compiler.mask(GrammarSpec("regex", pattern), 200)
        state, random_, longest_s = mask.start([]), random.Random(0), 0.0
        for _ in range(200):
            began_s = time.thread_time()
            ids = [each for each in allowed_ids(mask, state) if each not in EOS_IDS]
            longest_s = max(longest_s, time.thread_time() - began_s)
            if not ids:
                break
            state = mask.advance(state, random_.choice(ids))
        assert longest_s < 0.5, f"{pattern}: one mask took {longest_s:.3f} s"


def test_the_cache_is_bounded_and_used(compiler: GrammarCompiler) -> None:
    fresh = GrammarCompiler(TOKENIZER, VOCAB_SIZE, EOS_IDS, MAX_MODEL_LEN)
    specs = [schema_spec({"const": number}) for number in range(MAX_CACHED + 3)]
    for spec in specs:
        fresh.build(spec)
    num_before = fresh.num_compiled
    fresh.build(specs[-1])
    fresh.build(GrammarSpec("json_schema", specs[-1].text, "another field"))
    assert fresh.num_compiled == num_before == len(specs)
    fresh.build(specs[0])
    assert fresh.num_compiled == num_before + 1


def test_the_event_loop_goes_on_while_a_grammar_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = GrammarCompiler(TOKENIZER, VOCAB_SIZE, EOS_IDS, MAX_MODEL_LEN)
    original = fresh.build

    def slow(spec: GrammarSpec) -> Any:
        time.sleep(0.2)
        return original(spec)

    monkeypatch.setattr(fresh, "build", slow)
    monkeypatch.setattr(grammar_module, "MAX_PENDING", 2)

    async def run() -> int:
        tasks = [asyncio.create_task(fresh.compile(schema_spec({"const": number}), 9)) for number in range(2)]
        num_turns = 0
        while not all(task.done() for task in tasks):
            await asyncio.sleep(0.01)
            if num_turns == 3:
                with pytest.raises(QueueFull, match="2 grammars"):
                    await fresh.compile(schema_spec({"const": 99}), 9)
            num_turns += 1
        assert all(isinstance(task.result(), GrammarMask) for task in tasks)
        return num_turns

    assert asyncio.run(run()) >= 5


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnsupportedFeature, match=r"pip install 'ziggurat\[structured\]'") as failure:
        GrammarCompiler(TOKENIZER, VOCAB_SIZE, EOS_IDS, MAX_MODEL_LEN).build(schema_spec({}))
    assert failure.value.feature == "structured_outputs"


def test_a_model_without_an_end_cannot_be_held() -> None:
    with pytest.raises(RequestError, match="no end-of-sequence token"):
        GrammarCompiler(TOKENIZER, VOCAB_SIZE, (), MAX_MODEL_LEN).build(schema_spec({}))


@given(st.integers(0, 10_000))
def test_a_narrowed_schema_never_allows_more(seed: int) -> None:
    """Where schemas are composed nothing is closed; elsewhere the narrowed schema's own validator agrees with the original's."""
    (schema,) = make_schemas(12, seed)[seed % 12 :][:1]
    before = json.dumps(schema)
    narrow = narrowed(schema)
    assert json.dumps(schema) == before
    for value in ({}, {"name": 1, "zzz": 2}, [], [1, 2], 3, "x", None, True, 2**60, {"kind": "city", "city": "a"}):
        if jsonschema.Draft202012Validator(narrow).is_valid(value):
            assert jsonschema.Draft202012Validator(schema).is_valid(value)


@pytest.mark.parametrize(
    ("schema", "is_closed"),
    [
        ({"properties": {"a": {}}}, True),
        ({"properties": {"a": {}}, "additionalProperties": True}, False),
        ({"properties": {"a": {}}, "required": ["b"]}, False),
        ({"properties": {"a": {}}, "minProperties": 2}, False),
        ({"properties": {"a": {}}, "anyOf": [{"required": ["a"]}]}, False),
        ({"type": "object"}, False),
        ({"properties": {"a": {}}, "$defs": {"x": {"allOf": [{"properties": {"b": {}}}]}}}, False),
        ({"properties": {"allOf": {}}}, True),
    ],
)
def test_which_objects_are_closed(schema: dict[str, Any], is_closed: bool) -> None:
    assert (narrowed(schema).get("additionalProperties") is False) == is_closed


def test_formats_are_in_the_calendar_and_data_is_left_alone() -> None:
    narrow = narrowed({"format": "date", "enum": [{"type": "integer"}], "default": {"format": "date"}})
    assert narrow["enum"] == [{"type": "integer"}] and narrow["default"] == {"format": "date"}
    for text, is_valid in (("2024-02-28", True), ("2023-02-30", False), ("2023-04-31", False), ("0000-01-01", False)):
        assert bool(re.search(narrow["pattern"], text)) == is_valid
    assert is_costly({"items": {"pattern": "a"}}) and not is_costly({"properties": {"pattern": {}}, "enum": ["allOf"]})


def test_what_is_tried_out_gives_way_to_decoding() -> None:
    command = [sys.executable, "-P", str(Path(grammar_check.__file__))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        deadline_s = time.monotonic() + 30
        mine = os.getpriority(os.PRIO_PROCESS, 0)
        while (priority := os.getpriority(os.PRIO_PROCESS, child.pid)) <= mine and time.monotonic() < deadline_s:
            time.sleep(0.01)
        request = {"kind": "regex", "text": "a+", "options": {}, "limits": {}}
        answer, _ = child.communicate(json.dumps(request).encode())
    assert priority == min(19, mine + grammar_check.NICENESS)
    assert json.loads(answer)["error"] == ""


def test_thoughts_come_first(compiler: GrammarCompiler) -> None:
    answer = compiler.mask(GrammarSpec("choice", '["yes"]'), 50)
    open_id, close_id = 2, 3
    mask = ThinkFirst(answer, open_id, close_id, is_open=False, vocab_size=VOCAB_SIZE, eos_ids=EOS_IDS)
    state = mask.start([7, 8])
    assert allowed_ids(mask, state) == [open_id]
    state = mask.advance(state, open_id)
    assert set(range(VOCAB_SIZE)) - set(allowed_ids(mask, state)) == set(EOS_IDS)
    for token_id in (90, 91, close_id):
        state = mask.advance(state, token_id)
    text = []
    while (ids := allowed_ids(mask, state))[0] not in EOS_IDS:
        text.append(ids[-1])
        state = mask.advance(state, ids[-1])
    assert TOKENIZER.decode(text) == "yes" and mask.failure is None and not mask.was_closed(6)
    opened = ThinkFirst(answer, open_id, close_id, is_open=True, vocab_size=VOCAB_SIZE, eos_ids=EOS_IDS)
    assert len(allowed_ids(opened, opened.start([7]))) == VOCAB_SIZE - len(EOS_IDS)
