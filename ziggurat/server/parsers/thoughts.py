# SPDX-License-Identifier: Apache-2.0
"""``<think> .. </think>`` before an answer (Qwen 3, DeepSeek R1): what is thought, and what is said."""

from __future__ import annotations

from ziggurat.engine.families import THINK_CLOSE, THINK_OPEN
from ziggurat.engine.output import held_length


class ThoughtReader:
    """Splits growing text into thoughts and answer. Blanks around the marks belong to neither.

    Args:
        is_open: the prompt has opened the thoughts already.
    """

    def __init__(self, *, is_open: bool) -> None:
        self._held = ""
        self._stage = "thinking" if is_open else "before"
        self._has_begun = False

    def feed(self, text: str) -> tuple[str, str]:
        """(thoughts, answer) that have become certain."""
        self._held += text
        thoughts = ""
        if self._stage == "before":
            self._open()
        if self._stage == "thinking":
            thoughts = self._think()
        return thoughts, self._answer() if self._stage == "after" else ""

    def finish(self) -> tuple[str, str]:
        """The rest, when no text will follow."""
        rest, self._held = self._held, ""
        return (rest.rstrip(), "") if self._stage == "thinking" else ("", rest)

    def _open(self) -> None:
        start = self._held.lstrip()
        if start.startswith(THINK_OPEN):
            self._stage, self._held = "thinking", start[len(THINK_OPEN) :]
        elif not THINK_OPEN.startswith(start):
            self._stage, self._has_begun = "after", True  # no thoughts: the text is the answer as it is

    def _think(self) -> str:
        thoughts, found, after = self._held.partition(THINK_CLOSE)
        if found:
            thoughts = thoughts.rstrip() if self._has_begun else thoughts.strip()
            self._stage, self._held, self._has_begun = "after", after, False
            return thoughts
        if not self._has_begun:
            self._held = self._held.lstrip()
            self._has_begun = bool(self._held) and held_length(self._held, [THINK_CLOSE]) < len(self._held)
        # Blanks at the end wait too: they may stand before the mark.
        solid = self._held[: len(self._held) - held_length(self._held, [THINK_CLOSE])].rstrip()
        self._held = self._held[len(solid) :]
        return solid

    def _answer(self) -> str:
        if not self._has_begun:
            self._held = self._held.lstrip()
            self._has_begun = bool(self._held)
        text, self._held = self._held, ""
        return text
