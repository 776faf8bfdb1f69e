# SPDX-License-Identifier: Apache-2.0
"""The language of an answer when there are tools: calls that are demanded, calls beside a structured answer, calls of strict functions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ziggurat.engine.families import Family
from ziggurat.engine.grammar import JSON_OPTIONS, GrammarSpec, invalid
from ziggurat.engine.narrow_schema import narrowed
from ziggurat.errors import RequestError
from ziggurat.server.errors import UnsupportedField
from ziggurat.server.schemas import ChatRequest
from ziggurat.server.structured import language_of, must_call, offered_tools, refuse_min_tokens, schema_spec
from ziggurat.server.turns import NamedTool, Tool

# Any text, up to a call. The mark is found as soon as it is there.
_FREE = """start: called* rest
rest: TEXT
TEXT: /(.|\\n)*/
"""
_EITHER = """start: answer | call (NL call)*
NL: "\\n"
"""
_ONE = "start: answer | call\n"


def answer_language(body: ChatRequest, family: Family) -> GrammarSpec | None:
    """What the answer of a chat request is held to; None if it is free.

    Raises:
        RequestError: two fields contradict each other.
        UnsupportedField: a structured answer beside calls, for a family whose calls are not written in Hermes' form.
    """
    language = language_of(body)
    tools = offered_tools(body)
    if not tools:
        return language
    forced = _forced(body, tools)
    if forced is not None and body.allowed_token_ids is not None:
        raise RequestError(
            "allowed_token_ids cannot be combined with a tool_choice that demands a call", param="allowed_token_ids"
        )
    if forced is not None and language is not None:
        raise UnsupportedField(
            f"{language.param} together with a tool_choice that demands a call is not built: the answer is the call",
            feature=language.param,
            param=language.param,
        )
    is_hermes = family.tool_format == "hermes"
    if language is not None and not (is_hermes and language.kind == "json_schema"):
        raise UnsupportedField(
            f"{language.param} together with tools is built for JSON and for models that call in Hermes' form; "
            f"send one of them, or tool_choice 'none'",
            feature=language.param,
            param=language.param,
        )
    if language is not None:
        is_single = body.parallel_tool_calls is False
        return GrammarSpec("lark", either_lark(tools, json.loads(language.text), is_single=is_single), language.param)
    is_strict = forced is None and is_hermes and any(tool.function.strict for tool in tools)
    is_strict = is_strict and body.allowed_token_ids is None
    if is_strict:
        refuse_min_tokens(body)
    return GrammarSpec("lark", strict_lark(tools), "tools") if is_strict else forced


def _forced(body: ChatRequest, tools: Sequence[Tool]) -> GrammarSpec | None:
    """A function's arguments, or a list of calls; None if ``tool_choice`` demands neither."""
    if isinstance(body.tool_choice, NamedTool):
        refuse_min_tokens(body)
        (tool,) = [tool for tool in tools if tool.function.name == body.tool_choice.function.name]
        return schema_spec(tool.arguments_schema, "tools")
    if not must_call(body):
        return None
    refuse_min_tokens(body)
    return schema_spec(calls_schema(tools, max_calls=1 if body.parallel_tool_calls is False else None), "tools")


def calls_schema(tools: Sequence[Tool], max_calls: int | None) -> dict[str, Any]:
    """A list of calls of these tools. Each tool's schema has a place of its own, and its references lead there."""
    branches, places = [], {}
    for index, tool in enumerate(tools):
        place = f"tool_{index}"
        places[place] = moved(tool.arguments_schema, f"#/$defs/{place}")
        properties = {"name": {"const": tool.function.name}, "parameters": {"$ref": f"#/$defs/{place}"}}
        branches.append({"type": "object", "properties": properties, "required": ["name", "parameters"]})
    calls: dict[str, Any] = {"type": "array", "items": {"anyOf": branches}, "minItems": 1, "$defs": places}
    return calls if max_calls is None else {**calls, "maxItems": max_calls}


def moved(schema: Any, place: str) -> Any:
    """A schema that stands at ``place`` of another document: local references are led there."""
    if isinstance(schema, list):
        return [moved(each, place) for each in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: moved(value, place) for key, value in schema.items()}
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference.startswith("#"):
        result["$ref"] = place + reference[1:]
    return result


def either_lark(tools: Sequence[Tool], answer: Any, *, is_single: bool) -> str:
    """Lark: a JSON answer, or calls in Hermes' form with the arguments of their schemas."""
    names = " | ".join(f'"<tool_call>" call_{index}' for index in range(len(tools)))
    head = (_ONE if is_single else _EITHER) + f"answer: %json {_document(answer)}\ncall: {names}\n"
    return head + _call_rules(tools, [tool.arguments_schema for tool in tools])


def strict_lark(tools: Sequence[Tool]) -> str:
    """Lark: any text, and calls in Hermes' form; strict functions get arguments of their schema, others any object."""
    names = " | ".join(f"called_{index}" for index in range(len(tools)))
    lines = [
        f'trigger_{index}[lazy]: TEXT "<tool_call>"\ncalled_{index}: trigger_{index} call_{index}\n'
        for index in range(len(tools))
    ]
    schemas = [tool.arguments_schema if tool.function.strict else {"type": "object"} for tool in tools]
    return _FREE + f"called: {names}\n" + "".join(lines) + _call_rules(tools, schemas)


def _call_rules(tools: Sequence[Tool], schemas: Sequence[Any]) -> str:
    """One rule per tool, from behind the mark of a call to its end."""
    rules = []
    for index, (tool, schema) in enumerate(zip(tools, schemas, strict=True)):
        before = json.dumps(f'\n{{"name":"{tool.function.name}","arguments":')
        rules.append(
            f'call_{index}: {before} args_{index} "}}\\n</tool_call>"\nargs_{index}: %json {_document(schema)}\n'
        )
    return "".join(rules)


def _document(schema: Any) -> str:
    """A schema as it stands within a Lark grammar; how JSON is written goes with it."""
    if isinstance(schema, dict) and "x-guidance" in schema:
        raise invalid(
            GrammarSpec("lark", "", "tools"), "'x-guidance' is not a keyword that requests may set; leave it out"
        )
    narrow = narrowed(schema)
    return json.dumps({**narrow, "x-guidance": JSON_OPTIONS} if isinstance(narrow, dict) else narrow)
