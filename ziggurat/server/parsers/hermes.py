# SPDX-License-Identifier: Apache-2.0
"""Hermes and Qwen: ``<tool_call>{"name": .., "arguments": {..}}</tool_call>``, any number, anywhere in the text.

Source: https://github.com/NousResearch/Hermes-Function-Calling and the chat templates of Qwen 2.5 and 3.
"""

from __future__ import annotations

from ziggurat.engine.output import held_length
from ziggurat.server.parsers.base import PARSERS, Piece, parse_call

OPEN, CLOSE = "<tool_call>", "</tool_call>"


@PARSERS.register("hermes")
class HermesParser:
    """See `ToolParser`. A call that is not valid JSON is given back as text."""

    shows_special = False

    def __init__(self) -> None:
        self._held = ""
        self._is_inside = False

    def feed(self, text: str) -> list[Piece]:
        """See `ToolParser.feed`."""
        self._held += text
        pieces: list[Piece] = []
        while (piece := self._next()) is not None:
            if piece:
                pieces.append(piece)
        return pieces

    def finish(self) -> list[Piece]:
        """See `ToolParser.finish`; a last call may lack its end."""
        rest, self._held = self._held, ""
        if not self._is_inside:
            return [rest] if rest else []
        return [parse_call(rest) or OPEN + rest]

    def _next(self) -> Piece | None:
        """The next piece of what is held, perhaps empty; None when more text is needed."""
        marker = CLOSE if self._is_inside else OPEN
        before, found, after = self._held.partition(marker)
        if found:
            was_inside, self._is_inside, self._held = self._is_inside, not self._is_inside, after
            return (parse_call(before) or OPEN + before + CLOSE) if was_inside else before
        if self._is_inside:
            return None
        border = len(self._held) - held_length(self._held, [OPEN])
        shown, self._held = self._held[:border], self._held[border:]
        return shown or None
