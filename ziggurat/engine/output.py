# SPDX-License-Identifier: Apache-2.0
"""Sampled tokens to text that may be shown: characters are complete, and no part of a stop string ever goes out.

::

    tokens -> detokenizer -> [ emitted | held: could be the beginning of a stop string )

A match is found as if characters came one by one, so it does not depend on where tokens end: the stop string that is complete first
wins, and among those complete at the same character the longest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ziggurat.engine.tokenizer import Detokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class StopMatch:
    """``text[start:end]`` is the stop string ``stop``."""

    start: int
    end: int
    stop: str


def find_stop(text: str, stops: Sequence[str]) -> StopMatch | None:
    """The stop string that is complete first; among those that end there, the one that starts first."""
    matches = [
        StopMatch(start=text.find(stop), end=text.find(stop) + len(stop), stop=stop) for stop in stops if stop in text
    ]
    return min(matches, key=lambda match: (match.end, match.start), default=None)


def held_length(text: str, stops: Sequence[str]) -> int:
    """Length of the longest end of ``text`` that begins a stop string."""
    longest = max((len(stop) for stop in stops), default=1) - 1
    for length in range(min(longest, len(text)), 0, -1):
        end = text[len(text) - length :]
        if any(stop.startswith(end) for stop in stops):
            return length
    return 0


class TextOutput:
    """The growing text of one continuation.

    Args:
        detokenizer: None when the model has no tokenizer; all text is empty then.
        stops: stop strings.
        keeps_stop: leave the stop string in the text (``include_stop_str_in_output``).
        min_tokens: text of that many first tokens is not searched for stop strings.

    Attributes:
        stop: the stop string that was found, or None. Afterwards tokens add nothing.
    """

    def __init__(
        self,
        detokenizer: Detokenizer | None,
        stops: Sequence[str] = (),
        *,
        keeps_stop: bool = False,
        min_tokens: int = 0,
    ) -> None:
        self._detokenizer = detokenizer
        self._num_exempt = min_tokens
        self._stops = tuple(stops)
        self._keeps_stop = keeps_stop
        self._held = ""
        self.stop: str | None = None

    def add(self, token_id: int) -> str:
        """Text that may be shown now. Check `stop` afterwards."""
        if self._detokenizer is None or self.stop is not None:
            return ""
        text = self._detokenizer.add(token_id)
        if self._num_exempt > 0:
            self._num_exempt -= 1
            return text
        return self._advance(text)

    def finish(self) -> str:
        """The rest, when no token will follow: what was held back did not become a stop string."""
        if self._detokenizer is None or self.stop is not None:
            return ""
        shown = self._advance(self._detokenizer.flush())
        rest, self._held = self._held, ""
        return shown + rest

    def _advance(self, text: str) -> str:
        if not self._stops:
            return text
        self._held += text
        match = find_stop(self._held, self._stops) if text else None
        if match is not None:
            self.stop = match.stop
            shown = self._held[: match.end if self._keeps_stop else match.start]
            self._held = ""
            return shown
        border = len(self._held) - held_length(self._held, self._stops)
        shown, self._held = self._held[:border], self._held[border:]
        return shown
