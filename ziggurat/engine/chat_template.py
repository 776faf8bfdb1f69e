# SPDX-License-Identifier: Apache-2.0
"""Messages to prompt text: the checkpoint's Jinja template in a sandbox, by Hugging Face's conventions.

A template comes with a checkpoint, so it is not trusted: immutable sandbox, bounded ranges, bounded repetition, bounded output.
Source of the conventions: transformers' ``chat_template_utils``.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ziggurat.engine.tokenizer import read_json_object
from ziggurat.errors import ModelError, RequestError

Message = Mapping[str, Any]

_MAX_PROMPT_CHARACTERS = 16 * 1024 * 1024
_MAX_REPEATED = 100_000
_MAX_RANGE_TOTAL = 1_000_000
_TEXT_PARTS = ("text", "input_text", "output_text")


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateOptions:
    """How a conversation is rendered; see `ChatTemplate.render`.

    Attributes:
        tools: OpenAI's function tools, as the request has them.
        variables: further variables of the template (``chat_template_kwargs``).
    """

    add_generation_prompt: bool = True
    continue_final_message: bool = False
    tools: Sequence[Mapping[str, Any]] = ()
    variables: Mapping[str, Any] = field(default_factory=dict)


class _TemplateRefusal(jinja2.TemplateError):
    """The template itself called ``raise_exception``."""


class _GenerationTag(jinja2.ext.Extension):
    """``{% generation %} .. {% endgeneration %}`` marks assistant text for training masks; here it only passes its body through."""

    tags = {"generation"}  # noqa: RUF012  (jinja2 declares it so)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Sandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            raise SecurityError("powers are not allowed in chat templates")
        for value, count in ((left, right), (right, left)):
            if isinstance(value, (str, list, tuple)) and isinstance(count, int) and len(value) * count > _MAX_REPEATED:
                raise SecurityError(f"a repetition of {len(value) * count} items is above the limit of {_MAX_REPEATED}")
        return super().call_binop(context, operator, left, right)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    # Jinja's own filter escapes HTML characters; prompts want plain JSON.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _raise_exception(message: str) -> NoReturn:
    raise _TemplateRefusal(message)


def _strftime_now(pattern: str) -> str:
    return datetime.datetime.now().strftime(pattern)


def _bounded_range() -> Callable[..., range]:
    spent = 0

    def bounded(*arguments: int) -> range:
        nonlocal spent
        result = range(*arguments)
        spent += len(result)
        if spent > _MAX_RANGE_TOTAL:
            raise SecurityError(f"ranges of more than {_MAX_RANGE_TOTAL} items in total")
        return result

    return bounded


def _environment() -> _Sandbox:
    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, "jinja2.ext.loopcontrols"])
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


class ChatTemplate:
    """A compiled chat template.

    Args:
        source: Jinja text.
        special_tokens: variables such as ``bos_token`` and ``eos_token``.
        origin: where it came from, for messages.

    Raises:
        ModelError: it is not valid Jinja.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str], *, origin: str = "chat template") -> None:
        self.source = source
        self._special_tokens = dict(special_tokens)
        self._origin = origin
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateError as error:
            raise ModelError(f"{origin} is not a valid chat template: {error}") from error

    @classmethod
    def load(cls, folder: Path) -> ChatTemplate | None:
        """The template of a model folder (chat_template.jinja, else tokenizer_config.json's chat_template), or None.

        Raises:
            ModelError: it is there and damaged.
        """
        config = read_json_object(folder / "tokenizer_config.json")
        tokens = special_tokens(config)
        path = folder / "chat_template.jinja"
        if path.is_file():
            try:
                return cls(path.read_text(encoding="utf-8"), tokens, origin=str(path))
            except UnicodeDecodeError as error:
                raise ModelError(f"{path} is not UTF-8 text: {error}") from error
        origin = f"{folder / 'tokenizer_config.json'}: chat_template"
        raw = config.get("chat_template")
        if isinstance(raw, list):
            named = {each.get("name"): each.get("template") for each in raw if isinstance(each, dict)}
            raw = named.get("default")
            if raw is None:
                raise ModelError(f"{origin} has no template named 'default', only {', '.join(map(str, named))}")
        if raw is None:
            return None
        if not isinstance(raw, str):
            raise ModelError(f"{origin} must be text or a list of named templates, not {type(raw).__name__}")
        return cls(raw, tokens, origin=origin)

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> str:
        """The prompt of a conversation; tokenize it without adding special tokens.

        Args:
            continue_final_message: leave the last message open, so that the answer goes on from it.
            variables: further variables of the template (OpenAI extension ``chat_template_kwargs``).

        Raises:
            RequestError: the template refuses these messages, or a content part is not text.
            ModelError: the template itself fails.
        """
        plain = [_with_plain_content(index, message) for index, message in enumerate(messages)]
        values = {
            **self._special_tokens,
            **variables,
            "messages": plain,
            "tools": list(tools) if tools else None,
            "add_generation_prompt": add_generation_prompt and not continue_final_message,
            "range": _bounded_range(),
        }
        text = self._generate(values)
        return _cut_after_last_content(text, plain) if continue_final_message else text

    def render_with(self, messages: Sequence[Message], options: TemplateOptions) -> str:
        """`render` with its options as one object."""
        return self.render(
            messages,
            add_generation_prompt=options.add_generation_prompt,
            continue_final_message=options.continue_final_message,
            tools=options.tools,
            **options.variables,
        )

    def _generate(self, values: dict[str, Any]) -> str:
        pieces: list[str] = []
        size = 0
        try:
            for piece in self._template.generate(values):
                size += len(piece)
                if size > _MAX_PROMPT_CHARACTERS:
                    raise SecurityError(f"a prompt of more than {_MAX_PROMPT_CHARACTERS} characters")
                pieces.append(piece)
        except _TemplateRefusal as error:
            raise RequestError(f"the chat template refuses these messages: {error}", param="messages") from error
        except SecurityError as error:
            raise ModelError(f"{self._origin} does what chat templates may not do: {error}") from error
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError, ArithmeticError) as error:
            raise RequestError(
                f"the chat template cannot render these messages ({type(error).__name__}: {error})", param="messages"
            ) from error
        return "".join(pieces)


def missing_template(model: str) -> RequestError:
    """What a chat request to a model without a template is told."""
    return RequestError(
        f"model {model!r} has no chat template (no chat_template.jinja and no chat_template in tokenizer_config.json); "
        f"use completions with a plain prompt",
        param="messages",
        code="no_chat_template",
    )


def special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """The variables of a template (``bos_token`` ..) that a tokenizer_config.json defines."""
    found: dict[str, str] = {}
    for key, value in config.items():
        text = value.get("content") if isinstance(value, dict) else value
        if key.endswith("_token") and isinstance(text, str):
            found[key] = text
    return found


def _with_plain_content(index: int, message: Message) -> dict[str, Any]:
    """Text parts become one string, which is what templates expect."""
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise RequestError(f"messages[{index}] must be an object with a 'role'", param=f"messages[{index}].role")
    content = message.get("content")
    if not isinstance(content, (list, tuple)):
        if content is not None and not isinstance(content, str):
            raise RequestError(
                f"messages[{index}].content must be text or a list of text parts", param=f"messages[{index}].content"
            )
        return dict(message)
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind not in _TEXT_PARTS or not isinstance(part.get("text"), str):
            raise RequestError(
                f"messages[{index}].content has a part of type {kind!r}; this model reads text only",
                param=f"messages[{index}].content",
            )
        texts.append(part["text"])
    return {**message, "content": "\n".join(texts)}


def _cut_after_last_content(text: str, messages: Sequence[Message]) -> str:
    final = str(messages[-1].get("content") or "").strip() if messages else ""
    place = text.rfind(final)
    if not final or place < 0:
        raise RequestError(
            "continue_final_message needs a last message with text that the template shows", param="messages"
        )
    return text[: place + len(final)]
