# SPDX-License-Identifier: Apache-2.0
"""The message of one choice in the making: text goes through thoughts and tool calls, and comes out as OpenAI's deltas."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ziggurat.server.parsers.base import Call, Piece, ToolParser
from ziggurat.server.parsers.thoughts import ThoughtReader


class MessageReader:
    """Reads one choice.

    Args:
        thoughts, tools: readers of that choice alone; None where there is nothing to find.
        make_id: a new id per call.
        max_calls: further calls are dropped (``parallel_tool_calls: false``).
        shows_thoughts: pass thoughts on as ``reasoning_content``, or leave them out.
    """

    def __init__(
        self,
        thoughts: ThoughtReader | None = None,
        tools: ToolParser | None = None,
        *,
        make_id: Callable[[], str],
        max_calls: int | None = None,
        shows_thoughts: bool = True,
    ) -> None:
        self._thoughts = thoughts
        self._tools = tools
        self._make_id = make_id
        self._max_calls = max_calls
        self._shows_thoughts = shows_thoughts
        self._blanks = ""
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[dict[str, Any]] = []
        self._num_calls = 0

    @property
    def has_calls(self) -> bool:
        """Whether the model has called something."""
        return bool(self._calls)

    def feed(self, text: str) -> list[dict[str, Any]]:
        """The deltas that follow from new text."""
        thought, said = ("", text) if self._thoughts is None else self._thoughts.feed(text)
        return self._thought(thought) + self._said(said)

    def finish(self) -> list[dict[str, Any]]:
        """The last deltas."""
        thought, said = ("", "") if self._thoughts is None else self._thoughts.finish()
        deltas = self._thought(thought) + self._said(said)
        pieces = [] if self._tools is None else self._tools.finish()
        deltas += [delta for piece in pieces for delta in self._deltas(piece)]
        if self._blanks and not self._calls:
            deltas += self._text(self._blanks)
        return deltas

    def message(self) -> dict[str, Any]:
        """The whole message, after `finish`."""
        content = "".join(self._content)
        message: dict[str, Any] = {"role": "assistant", "content": content or (None if self._calls else "")}
        message["refusal"] = None
        if self._reasoning:
            message["reasoning_content"] = "".join(self._reasoning)
        if self._calls:
            message["tool_calls"] = self._calls
        return message

    def _thought(self, text: str) -> list[dict[str, Any]]:
        if not text or not self._shows_thoughts:
            return []
        self._reasoning.append(text)
        return [{"reasoning_content": text}]

    def _said(self, text: str) -> list[dict[str, Any]]:
        if self._tools is None:
            return self._text(text) if text else []
        return [delta for piece in self._tools.feed(text) for delta in self._deltas(piece)]

    def _deltas(self, piece: Piece) -> list[dict[str, Any]]:
        if isinstance(piece, Call):
            self._blanks = ""
            return self._called(piece)
        # Blanks before and between calls are layout, not an answer.
        text = self._blanks + piece
        kept = text.rstrip()
        self._blanks = text[len(kept) :]
        return self._text(kept) if kept else []

    def _text(self, text: str) -> list[dict[str, Any]]:
        self._content.append(text)
        return [{"content": text}]

    def _called(self, call: Call) -> list[dict[str, Any]]:
        if not call.is_continued:
            self._num_calls += 1
        if self._max_calls is not None and self._num_calls > self._max_calls:
            return []
        index = self._num_calls - 1
        rest = {"tool_calls": [{"index": index, "function": {"arguments": call.arguments}}]}
        if call.is_continued:
            self._calls[index]["function"]["arguments"] += call.arguments
            return [rest]
        made = {"id": self._make_id(), "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        self._calls.append(made)
        head = {**made, "index": index, "function": {"name": call.name, "arguments": ""}}
        return [{"tool_calls": [head]}, rest]
