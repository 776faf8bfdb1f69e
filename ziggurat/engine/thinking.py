# SPDX-License-Identifier: Apache-2.0
"""A structured answer of a model that thinks first: thoughts are free, and the language begins behind ``</think>``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ziggurat.engine.grammar import GrammarMask


@dataclass(frozen=True, slots=True)
class _Thinking:
    """Before the answer: the prompt, how many tokens were thought, whether a mark has opened the thoughts."""

    token_ids: tuple[int, ...]
    num_used: int
    is_open: bool


class ThinkFirst:
    """A `LogitsMask` around another one. The first token opens the thoughts unless the prompt did; they cannot end the text.

    Args:
        open_id, close_id: the marks' tokens.
        is_open: the prompt has opened the thoughts already.
        vocab_size, eos_ids: of the model.
    """

    def __init__(
        self,
        answer: GrammarMask,
        open_id: int,
        close_id: int,
        *,
        is_open: bool,
        vocab_size: int,
        eos_ids: Sequence[int],
    ) -> None:
        self._answer = answer
        self._close_id = close_id
        self._is_open = is_open
        num_bytes = (vocab_size + 7) // 8
        only_open = bytearray(num_bytes)
        only_open[open_id >> 3] |= 1 << (open_id & 7)
        all_but_ends = bytearray(b"\xff" * num_bytes)
        for token_id in eos_ids:
            all_but_ends[token_id >> 3] &= ~(1 << (token_id & 7)) & 0xFF
        self._only_open, self._all_but_ends = bytes(only_open), bytes(all_but_ends)

    @property
    def failure(self) -> str | None:
        """As `GrammarMask.failure`."""
        return self._answer.failure

    def was_closed(self, num_output_tokens: int) -> bool:
        """As `GrammarMask.was_closed`."""
        return self._answer.was_closed(num_output_tokens)

    def start(self, prompt_ids: Sequence[int]) -> Any:
        """See `LogitsMask.start`."""
        return _Thinking(tuple(prompt_ids), 0, self._is_open)

    def mask(self, state: Any) -> Any:
        """See `LogitsMask.mask`."""
        if not isinstance(state, _Thinking):
            return self._answer.mask(state)
        return self._all_but_ends if state.is_open else self._only_open

    def advance(self, state: Any, token_id: int) -> Any:
        """See `LogitsMask.advance`."""
        if not isinstance(state, _Thinking):
            return self._answer.advance(state, token_id)
        if token_id == self._close_id:
            return self._answer.start(state.token_ids, num_used=state.num_used + 1)
        return _Thinking(state.token_ids, state.num_used + 1, True)
