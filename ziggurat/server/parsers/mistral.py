# SPDX-License-Identifier: Apache-2.0
"""Mistral: text, then ``[TOOL_CALLS]`` and a JSON list of ``{"name", "arguments"}``, or once per call ``[TOOL_CALLS]name[ARGS]{..}``.

Source: mistral-common's instruct tokenizers v3 (list), v11 and v13 (name first).
"""

from __future__ import annotations

import json
import re

from ziggurat.engine.output import held_length
from ziggurat.server.parsers.base import PARSERS, Call, JsonEnd, Piece, call_of

OPEN = "[TOOL_CALLS]"
_NAME = re.compile(r"\s*([A-Za-z0-9_.:/-]+)\s*(?:\[CALL_ID\]\w+)?(?:\[ARGS\])?\s*(?=\{)")


@PARSERS.register("mistral")
class MistralParser:
    """See `ToolParser`. What follows the marker and is no call is given back as text."""

    shows_special = True

    def __init__(self) -> None:
        self._held = ""
        self._is_inside = False
        self._start: int | None = None
        self._end = JsonEnd()

    def feed(self, text: str) -> list[Piece]:
        """See `ToolParser.feed`."""
        self._held += text
        pieces: list[Piece] = []
        while True:
            if not self._is_inside:
                before, found, after = self._held.partition(OPEN)
                if not found:
                    border = len(self._held) - held_length(self._held, [OPEN])
                    before, after = self._held[:border], self._held[border:]
                if before:
                    pieces.append(before)
                self._held, self._is_inside = after, bool(found)
                if not found:
                    return pieces
            calls = self._calls()
            if calls is None:
                return pieces
            pieces += calls

    def finish(self) -> list[Piece]:
        """See `ToolParser.finish`."""
        rest, self._held = self._held, ""
        return [OPEN + rest] if self._is_inside else [rest] if rest else []

    def _calls(self) -> list[Piece] | None:
        """The calls behind one marker, once they are complete."""
        if self._start is None:
            name = _NAME.match(self._held)
            stripped = self._held.lstrip()
            if name is None and not stripped.startswith("["):
                return None
            self._start = name.end() if name is not None else len(self._held) - len(stripped)
        end = self._end.find(self._held[self._start :])
        if end is None:
            return None
        head, body = self._held[: self._start].strip(), self._held[self._start : self._start + end]
        raw, self._held = self._held[: self._start + end], self._held[self._start + end :]
        self._is_inside, self._start, self._end = False, None, JsonEnd()
        return _parsed(head, body) or [OPEN + raw]


def _parsed(head: str, body: str) -> list[Piece] | None:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if isinstance(value, dict):
        return [Call(head.split("[")[0].strip(), json.dumps(value, ensure_ascii=False))]
    calls = [call_of(each) for each in value]
    return [each for each in calls if each is not None] if all(calls) else None
