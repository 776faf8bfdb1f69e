# SPDX-License-Identifier: Apache-2.0
"""A chat request between its body and its prompt: what the template is told, what the answer is held to, who reads the answer."""

from __future__ import annotations

import hashlib
import secrets
import string
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from ziggurat.engine.chat_template import TemplateOptions
from ziggurat.engine.families import THINK_CLOSE, THINK_OPEN, Family, Thoughts
from ziggurat.scheduling.masks import LogitsMask
from ziggurat.server.call_grammar import answer_language
from ziggurat.server.errors import UnsupportedField
from ziggurat.server.parsers import PARSERS, MessageReader, NamedCall, RequiredCalls, ThoughtReader, ToolParser
from ziggurat.server.schemas import ChatRequest
from ziggurat.server.service import ModelText
from ziggurat.server.structured import allowed_tokens, must_call, offered_tools
from ziggurat.server.turns import NamedTool

# The marks of thoughts stand at the very end of a prompt.
TAIL_TOKENS = 16
MISTRAL_ID_LENGTH = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """What is known of a chat request once its prompt is there.

    Attributes:
        thoughts: whether the answer begins with thoughts, and who opens them.
        mask: keeps the answer within a language; None if it is free.
    """

    family: Family
    thoughts: Thoughts
    mask: LogitsMask | None


def template_options(body: ChatRequest, family: Family) -> TemplateOptions:
    """What the chat template is told.

    Raises:
        UnsupportedField: reasoning effort for a model that cannot be told.
    """
    return TemplateOptions(
        add_generation_prompt=body.add_generation_prompt is not False,
        continue_final_message=bool(body.continue_final_message),
        tools=[tool.for_template() for tool in offered_tools(body)],
        variables={**_effort(body, family), **(body.chat_template_kwargs or {})},
    )


def _effort(body: ChatRequest, family: Family) -> dict[str, Any]:
    effort = body.reasoning_effort
    if effort is None or (effort == "none" and not family.is_thinking):
        return {}
    if family.has_effort:
        return {"reasoning_effort": effort}
    if family.thinking_switch is not None:
        return {family.thinking_switch: effort != "none"}
    raise UnsupportedField(
        f"reasoning_effort {effort!r}: the chat template of this model has no switch for it; leave it out",
        feature="reasoning_effort",
        param="reasoning_effort",
    )


async def converse(service: ModelText, body: ChatRequest, prompt_ids: Sequence[int]) -> Conversation:
    """Compile what the answer is held to.

    Raises:
        RequestError, UnsupportedField, QueueFull: it cannot be had; see `Service.compile_grammar`.
    """
    family = service.family
    thoughts = thoughts_after(service, family, prompt_ids)
    spec = answer_language(body, family)
    mask: LogitsMask | None = allowed_tokens(body, service.vocab_size)
    if spec is not None:
        mask = await service.compile_grammar(spec, body.output_limit, thoughts)
    return Conversation(family=family, thoughts=thoughts, mask=mask)


def thoughts_after(service: ModelText, family: Family, prompt_ids: Sequence[int]) -> Thoughts:
    """Whether a prompt is followed by thoughts: opened in it, expected, possible, or not there."""
    if not family.is_thinking:
        return "none"
    tail = service.decode(prompt_ids[-TAIL_TOKENS:], skip_special_tokens=False).rstrip()
    if tail.endswith(THINK_OPEN):
        return "opened"
    if tail.endswith(THINK_CLOSE):
        return "none"
    return "possible" if family.thinking_switch is None else "expected"


def make_reader(body: ChatRequest, conversation: Conversation, call_ids: str | None = None) -> MessageReader:
    """The reader of one choice.

    Args:
        call_ids: ids of calls follow from this text; None makes random ones.
    """
    thoughts = None
    if conversation.thoughts != "none":
        thoughts = ThoughtReader(is_open=conversation.thoughts == "opened")
    is_mistral = conversation.family.tool_format == "mistral"
    return MessageReader(
        thoughts,
        tool_parser(body, conversation.family),
        make_id=_derived_ids(call_ids, is_mistral) if call_ids else _mistral_id if is_mistral else _call_id,
        max_calls=1 if body.parallel_tool_calls is False else None,
        shows_thoughts=body.include_reasoning is not False,
    )


def tool_parser(body: ChatRequest, family: Family) -> ToolParser | None:
    """A new parser of calls; None if none can come."""
    if isinstance(body.tool_choice, NamedTool):
        return NamedCall(body.tool_choice.function.name)
    if must_call(body):
        return RequiredCalls()
    return PARSERS.get(family.tool_format)() if offered_tools(body) else None


def shows_special(body: ChatRequest, family: Family) -> bool:
    """Whether special tokens stay in the text: asked for, or the format of calls is written with them."""
    if body.skip_special_tokens is not None:
        return not body.skip_special_tokens
    parser = tool_parser(body, family)
    return parser is not None and parser.shows_special


def _call_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"


def _derived_ids(base: str, is_mistral: bool) -> Callable[[], str]:
    numbers = count()

    def make() -> str:
        digest = hashlib.blake2b(f"{base}/{next(numbers)}".encode(), digest_size=12).hexdigest()
        return digest[:MISTRAL_ID_LENGTH] if is_mistral else f"call_{digest}"

    return make


def _mistral_id() -> str:
    """Mistral's templates refuse any other length."""
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(MISTRAL_ID_LENGTH))
