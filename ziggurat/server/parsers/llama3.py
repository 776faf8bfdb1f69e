# SPDX-License-Identifier: Apache-2.0
"""Llama 3.1 and later: the whole answer is ``{"name": .., "parameters": {..}}``, perhaps several with ``;`` between them, perhaps after
``<|python_tag|>``. Text that does not begin so is an answer.

Source: the chat templates of Llama 3.1 to 3.3 and Meta's prompt format pages.
"""

from __future__ import annotations

from ziggurat.server.parsers.base import PARSERS, JsonEnd, Piece, parse_call

TAG = "<|python_tag|>"
_BETWEEN = " \t\r\n;"


@PARSERS.register("llama3_json")
class Llama3Parser:
    """See `ToolParser`."""

    shows_special = True

    def __init__(self) -> None:
        self._held = ""
        self._is_text = self._has_calls = False
        self._end = JsonEnd()

    def feed(self, text: str) -> list[Piece]:
        """See `ToolParser.feed`."""
        if self._is_text:
            return [text] if text else []
        self._held += text
        pieces: list[Piece] = []
        while not self._is_text:
            start = self._held.lstrip(_BETWEEN)
            if start.startswith(TAG):
                start = start[len(TAG) :].lstrip(_BETWEEN)
            if not start or (TAG.startswith(start) and TAG not in self._held):
                break
            if not start.startswith("{"):
                return [*pieces, *self._as_text()]
            end = self._end.find(start)
            if end is None:
                break
            call = parse_call(start[:end])
            if call is None:
                return [*pieces, *self._as_text()]
            pieces.append(call)
            self._held, self._end, self._has_calls = start[end:], JsonEnd(), True
        return pieces

    def finish(self) -> list[Piece]:
        """See `ToolParser.finish`."""
        is_layout = self._has_calls and not self._held.strip(_BETWEEN)
        return [] if is_layout else self._as_text()

    def _as_text(self) -> list[Piece]:
        self._is_text = True
        rest, self._held = self._held, ""
        return [rest] if rest else []
