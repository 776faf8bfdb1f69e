# SPDX-License-Identifier: Apache-2.0
"""The language that a request wants its answer in: ``response_format``, vLLM's ``structured_outputs`` and ``guided_*``, forced calls."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from pydantic import FailFast, Field, model_validator

from ziggurat.engine.grammar import GrammarSpec
from ziggurat.errors import RequestError
from ziggurat.scheduling.masks import AllowedTokens
from ziggurat.server.turns import NAME, AllowedToolChoice, Strict, Tool, chosen_names, not_built

if TYPE_CHECKING:
    from ziggurat.server.schemas import ChatRequest, CompletionRequest

_KINDS = ("json", "regex", "choice", "grammar", "json_object")
ANY_OBJECT = '{"type":"object"}'


class JsonSchema(Strict):
    """``json_schema`` of a response format. Always followed exactly, whatever ``strict`` says."""

    name: str = Field(pattern=NAME)
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    description: str | None = None
    strict: bool | None = None


class TextFormat(Strict):
    """Asks for nothing."""

    type: Literal["text"]


class ObjectFormat(Strict):
    """Any JSON object."""

    type: Literal["json_object"]


class SchemaFormat(Strict):
    """JSON of a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[TextFormat | ObjectFormat | SchemaFormat, Field(discriminator="type")]


class StructuredOutputs(Strict):
    """vLLM's ``structured_outputs``: exactly one of json, regex, choice, grammar (Lark or GBNF) and json_object."""

    json_: str | dict[str, Any] | None = Field(None, alias="json")
    regex: str | None = None
    choice: Annotated[list[str] | None, FailFast()] = Field(None, min_length=1)
    grammar: str | None = None
    json_object: bool | None = None
    # JSON is always compact, so blanks are off already.
    disable_any_whitespace: bool | None = None
    disable_fallback: bool | None = None
    disable_additional_properties: Literal[True] | None = None

    @model_validator(mode="before")
    @classmethod
    def _known(cls, value: object) -> object:
        for name in ("structural_tag", "whitespace_pattern"):
            if isinstance(value, dict) and value.get(name) is not None:
                raise not_built("structured_outputs", f"{name} is not built in this version of Ziggurat")
        return value

    @model_validator(mode="after")
    def _one(self) -> StructuredOutputs:
        values = (self.json_, self.regex, self.choice, self.grammar, self.json_object or None)
        given = [name for name, value in zip(_KINDS, values, strict=True) if value is not None]
        if len(given) != 1:
            raise ValueError(f"needs exactly one of {', '.join(_KINDS)}, got {', '.join(given) or 'none'}")
        return self


def language_of(body: ChatRequest | CompletionRequest) -> GrammarSpec | None:
    """The language that the fields of a request ask for, or None.

    Raises:
        RequestError: several do, or one cannot be put together with ``min_tokens``.
    """
    specs = [*_of_format(body), *_of_structured(body), *_of_guided(body)]
    if len(specs) > 1:
        names = " and ".join(spec.param for spec in specs)
        raise RequestError(f"{names} both say what the answer is; send one of them", param=specs[1].param)
    if specs:
        refuse_min_tokens(body)
    if specs and body.allowed_token_ids is not None:
        raise RequestError(
            f"{specs[0].param} and allowed_token_ids both say what the answer is; send one of them",
            param="allowed_token_ids",
        )
    return specs[0] if specs else None


def allowed_tokens(body: ChatRequest | CompletionRequest, vocab_size: int) -> AllowedTokens | None:
    """The mask of ``allowed_token_ids``.

    Raises:
        RequestError: an id is not in the vocabulary.
    """
    for token_id in body.allowed_token_ids or ():
        if not 0 <= token_id < vocab_size:
            raise RequestError(
                f"allowed_token_ids: token {token_id} is not in the vocabulary (ids 0 to {vocab_size - 1})",
                param="allowed_token_ids",
            )
    return None if body.allowed_token_ids is None else AllowedTokens(body.allowed_token_ids, vocab_size)


def refuse_min_tokens(body: ChatRequest | CompletionRequest) -> None:
    """A language ends where it ends.

    Raises:
        RequestError: ``min_tokens`` was asked for too.
    """
    if body.min_tokens:
        raise RequestError(
            f"min_tokens {body.min_tokens} cannot be promised for a structured answer; leave it out", param="min_tokens"
        )


def _of_format(body: ChatRequest | CompletionRequest) -> Iterator[GrammarSpec]:
    asked = body.response_format
    if isinstance(asked, ObjectFormat):
        yield GrammarSpec("json_schema", ANY_OBJECT, "response_format")
    elif isinstance(asked, SchemaFormat):
        yield schema_spec(asked.json_schema.schema_ or {"type": "object"}, "response_format")


def _of_structured(body: ChatRequest | CompletionRequest) -> Iterator[GrammarSpec]:
    asked = body.structured_outputs
    if asked is not None:
        schema = {"type": "object"} if asked.json_object else asked.json_
        yield from _of_kinds("structured_outputs", schema, asked.regex, asked.choice, asked.grammar)


def _of_guided(body: ChatRequest | CompletionRequest) -> Iterator[GrammarSpec]:
    yield from _of_kinds("guided_json", body.guided_json, None, None, None)
    yield from _of_kinds("guided_regex", None, body.guided_regex, None, None)
    yield from _of_kinds("guided_choice", None, None, body.guided_choice, None)
    yield from _of_kinds("guided_grammar", None, None, None, body.guided_grammar)


def _of_kinds(
    param: str, schema: str | dict[str, Any] | None, regex: str | None, choice: list[str] | None, grammar: str | None
) -> Iterator[GrammarSpec]:
    if schema is not None:
        yield schema_spec(schema, param)
    if regex is not None:
        yield GrammarSpec("regex", regex, param)
    if choice is not None:
        yield GrammarSpec("choice", msgspec.json.encode(choice).decode(), param)
    if grammar is not None:
        yield GrammarSpec("grammar", grammar, param)


def schema_spec(schema: str | dict[str, Any], param: str) -> GrammarSpec:
    """The language of a JSON schema, given as an object or as text.

    Raises:
        RequestError: not JSON, or nested too deeply.
    """
    try:
        if isinstance(schema, str):
            schema = msgspec.json.decode(schema)
        return GrammarSpec("json_schema", msgspec.json.encode(schema).decode(), param)
    except msgspec.MsgspecError as error:
        raise RequestError(f"{param}: the schema is not valid JSON: {error}", param=param) from None
    except RecursionError:
        raise RequestError(f"{param}: the schema is nested too deeply; make it flatter", param=param) from None


def offered_tools(body: ChatRequest) -> list[Tool]:
    """The tools that the model may call in this turn: none with ``tool_choice: none``, which keeps them out of the prompt too."""
    if body.tool_choice == "none":
        return []
    names = chosen_names(body.tool_choice) if isinstance(body.tool_choice, AllowedToolChoice) else None
    return [tool for tool in body.tools or () if names is None or tool.function.name in names]


def must_call(body: ChatRequest) -> bool:
    """Whether some tool has to be called, whichever."""
    choice = body.tool_choice
    return choice == "required" or (isinstance(choice, AllowedToolChoice) and choice.allowed_tools.mode == "required")
