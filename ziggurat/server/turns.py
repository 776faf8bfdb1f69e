# SPDX-License-Identifier: Apache-2.0
"""What a chat request says besides numbers: turns, tools, and which of them may be called. OpenAI's shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema, field_validator, model_validator
from pydantic_core import PydanticCustomError

NAME = r"^[A-Za-z0-9_.:/-]{1,128}$"
MAX_SHOWN = 40
# What `ChatTemplate.render` sets itself, by fields of their own.
RESERVED_VARIABLES = ("messages", "tools", "add_generation_prompt", "continue_final_message", "range", "self")

Content = Annotated[
    str | None,
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}, {"type": "null"}]}),
]


def not_built(feature: str, message: str) -> PydanticCustomError:
    """A complaint that becomes 501 with the name of the feature."""
    return PydanticCustomError("not_built", "{message}", {"message": message, "feature": feature})


class Strict(BaseModel):
    """No coercion, no unknown fields."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


def _check_variables(value: dict[str, Any] | None) -> dict[str, Any] | None:
    for name in value or {}:
        if name in RESERVED_VARIABLES:
            raise ValueError(f"must not set {name!r}, which has a field of its own or belongs to the template")
        if not name.isidentifier():
            raise ValueError(f"names must be identifiers, got {name[:MAX_SHOWN]!r}")
    return value


TemplateKwargs = Annotated[dict[str, Any] | None, AfterValidator(_check_variables)]


class Function(Strict):
    """A function that the model may call. ``parameters`` is a JSON schema; without it the function takes nothing."""

    name: str = Field(pattern=NAME)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Strict):
    """One entry of ``tools``."""

    type: str
    function: Function

    @model_validator(mode="before")
    @classmethod
    def _only_functions(cls, value: object) -> object:
        kind = value.get("type") if isinstance(value, dict) else None
        if isinstance(kind, str) and kind != "function":
            raise not_built("tools", f"tools of type {kind[:MAX_SHOWN]!r} are not built, only 'function'")
        return value

    def for_template(self) -> dict[str, Any]:
        """As templates expect it: fields that were not given are left out."""
        return {"type": "function", "function": self.function.model_dump(exclude_none=True, exclude={"strict"})}

    @property
    def arguments_schema(self) -> dict[str, Any]:
        """The JSON schema of the arguments."""
        return self.function.parameters or {"type": "object", "properties": {}, "additionalProperties": False}


class FunctionName(Strict):
    """Names a function."""

    name: str = Field(pattern=NAME)


class NamedTool(Strict):
    """``tool_choice`` of one function; also an entry of ``allowed_tools``."""

    type: Literal["function"]
    function: FunctionName


class AllowedTools(Strict):
    """Some of the tools, and whether one of them has to be called."""

    mode: Literal["auto", "required"]
    tools: list[NamedTool] = Field(min_length=1)


class AllowedToolChoice(Strict):
    """``tool_choice`` of type ``allowed_tools``."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


ToolChoice = Literal["none", "auto", "required"] | NamedTool | AllowedToolChoice


def chosen_names(choice: ToolChoice | None) -> list[str]:
    """The functions that a ``tool_choice`` names; empty if it names none."""
    if isinstance(choice, NamedTool):
        return [choice.function.name]
    if isinstance(choice, AllowedToolChoice):
        return [each.function.name for each in choice.allowed_tools.tools]
    return []


class CalledFunction(Strict):
    """A call as the model made it: ``arguments`` is JSON text."""

    name: str = Field(pattern=NAME)
    arguments: str

    @field_validator("arguments")
    @classmethod
    def _object(cls, value: str) -> str:
        parse_arguments(value)
        return value


class ToolCall(Strict):
    """One entry of an assistant's ``tool_calls``."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = None


class ChatMessage(Strict):
    """One turn. Nullable fields come back when a client sends an assistant's message as it received it."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Content = None
    name: str | None = None
    refusal: None = None
    annotations: list[Any] | None = None
    audio: None = None
    function_call: None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None

    @field_validator("content", mode="before")
    @classmethod
    def _join_parts(cls, value: object) -> object:
        if not isinstance(value, list):
            return value
        texts = []
        for part in value:
            if not isinstance(part, dict) or not isinstance(part.get("text"), str) or part.get("type") != "text":
                kind = part.get("type") if isinstance(part, dict) else None
                raise ValueError(f"content parts must be of type 'text' with a text, got type {str(kind)[:40]!r}")
            texts.append(part["text"])
        return "".join(texts)

    @model_validator(mode="after")
    def _check(self) -> ChatMessage:
        if self.role == "function":
            raise not_built("functions", "turns of role 'function' are not built; use tools and the role 'tool'")
        if self.tool_calls and self.role != "assistant":
            raise ValueError(f"tool_calls belong to the role 'assistant', not {self.role!r}")
        if self.role == "tool" and self.tool_call_id is None:
            raise ValueError("a turn of role 'tool' needs the tool_call_id that it answers")
        if self.content is None and not self.tool_calls:
            raise ValueError(f"content of a message of role {self.role!r} must be a string or a list of text parts")
        return self

    def for_template(self) -> dict[str, Any]:
        """What a chat template sees; OpenAI's 'developer' is everybody else's 'system', and arguments are objects."""
        turn: dict[str, Any] = {"role": "system" if self.role == "developer" else self.role, "content": self.content}
        if not self.tool_calls:
            turn["content"] = self.content or ""
        else:
            turn["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.function.name, "arguments": parse_arguments(call.function.arguments)},
                }
                for call in self.tool_calls
            ]
        optional = {
            "name": self.name,
            "tool_call_id": self.tool_call_id,
            "reasoning_content": self.reasoning_content if self.reasoning is None else self.reasoning,
        }
        return turn | {name: value for name, value in optional.items() if value is not None}


def parse_arguments(text: str) -> Mapping[str, Any]:
    """Arguments of a call as an object; an empty text means none (OpenAI's clients send that).

    Raises:
        ValueError: not a JSON object.
    """
    try:
        value = msgspec.json.decode(text) if text.strip() else {}
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(f"must be JSON text: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"must be the JSON text of an object, got {type(value).__name__}")
    return value
