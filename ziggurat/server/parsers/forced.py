# SPDX-License-Identifier: Apache-2.0
"""Calls that a grammar has forced: the whole text is JSON whose form we chose ourselves, the same for every family."""

from __future__ import annotations

from ziggurat.server.parsers.base import Call, JsonEnd, Piece, parse_call


class NamedCall:
    """``tool_choice`` names a function: the text is its arguments, passed on as they come. See `ToolParser`."""

    shows_special = False

    def __init__(self, name: str) -> None:
        self._name = name

    def feed(self, text: str) -> list[Piece]:
        """See `ToolParser.feed`."""
        if not text:
            return []
        name, self._name = self._name, ""
        return [Call(name, text, is_continued=not name)]

    def finish(self) -> list[Piece]:
        """See `ToolParser.finish`."""
        return []


class RequiredCalls:
    """``tool_choice`` is ``required``: the text is a list of ``{"name": .., "parameters": {..}}``. See `ToolParser`."""

    shows_special = False

    def __init__(self) -> None:
        self._held = ""
        self._end = JsonEnd()

    def feed(self, text: str) -> list[Piece]:
        """See `ToolParser.feed`."""
        self._held += text
        pieces: list[Piece] = []
        while True:
            start = self._held.find("{")
            if start < 0:
                self._held = ""  # brackets and commas of the list
                return pieces
            self._held = self._held[start:]
            end = self._end.find(self._held)
            if end is None:
                return pieces
            pieces.append(parse_call(self._held[:end]) or self._held[:end])
            self._held, self._end = self._held[end:], JsonEnd()

    def finish(self) -> list[Piece]:
        """See `ToolParser.finish`; half a call, cut by ``max_tokens``, is shown as text."""
        return [self._held] if self._held else []
