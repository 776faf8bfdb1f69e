# SPDX-License-Identifier: Apache-2.0
"""What every reader of tool calls shares: its pieces, the registry, and finding the end of a JSON value that comes bit by bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from ziggurat.registry import Registry


@dataclass(frozen=True, slots=True)
class Call:
    """A call. With ``is_continued``, ``arguments`` go on those of the call before, and ``name`` is empty."""

    name: str
    arguments: str
    is_continued: bool = False


Piece = str | Call
"""Text for the reader of the answer, or a call."""


class ToolParser(Protocol):
    """Reads the growing text of one choice. What is said does not depend on where the text was cut.

    Attributes:
        shows_special: the format is written with special tokens, so they must be left in the text.
    """

    shows_special: bool

    def feed(self, text: str) -> list[Piece]:
        """What has become certain with this text."""
        ...

    def finish(self) -> list[Piece]:
        """The rest, when no text will follow."""
        ...


PARSERS: Registry[Callable[[], ToolParser]] = Registry("tool-call parser")
"""By the name of the format, as `ziggurat.engine.families.Family.tool_format` has it."""


def call_of(value: Any) -> Call | None:
    """A parsed object as a call: ``name``, and ``arguments`` (``parameters`` in Llama's form); None if it is not one."""
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or not value["name"]:
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):  # some models quote them once more
        return Call(value["name"], arguments)
    return Call(value["name"], json.dumps(arguments, ensure_ascii=False)) if isinstance(arguments, dict) else None


def parse_call(text: str) -> Call | None:
    """The call that a JSON text holds, or None."""
    try:
        return call_of(json.loads(text))
    except (ValueError, RecursionError):
        return None


class JsonEnd:
    """Finds where an object or array ends in a text that grows; every character is looked at once."""

    def __init__(self) -> None:
        self._place = self._depth = 0
        self._is_string = self._is_escaped = False

    def find(self, text: str) -> int | None:
        """The index behind the value's last character, or None. ``text`` is the same value each time, with more at its end."""
        for place in range(self._place, len(text)):
            character = text[place]
            if self._is_escaped:
                self._is_escaped = False
            elif self._is_string:
                self._is_escaped = character == "\\"
                self._is_string = character != '"'
            elif character == '"':
                self._is_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth <= 0:
                    self._place = place + 1
                    return place + 1
        self._place = len(text)
        return None
