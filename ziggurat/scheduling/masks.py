# SPDX-License-Identifier: Apache-2.0
"""The hook of structured output: who says which tokens may come next. Plain data; grammar libraries plug in behind it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol


class LogitsMask(Protocol):
    """A language over tokens, for one request (`SamplingParams.logits_mask`). Called on the engine's thread, once per sampled token.

    States are values: `advance` returns the next one and leaves the old one as it was, because continuations of one prompt share
    them. A state is a function of the prompt and the sampled tokens only: after preemption, or when it was dropped, it is built
    again from them. End-of-sequence tokens are tokens like others: a mask that never allows one never ends before ``max_tokens``.
    What is raised here ends the sequence with that message, and no other.
    """

    def start(self, prompt_ids: Sequence[int]) -> Any:
        """The state before the first sampled token."""
        ...

    def mask(self, state: Any) -> Any:
        """Allowed tokens as a buffer of bits (bytes, or any contiguous array), or None if all are.

        Token t is bit ``t % 8`` of byte ``t // 8``, the lowest bit first; 1 allows. At least ceil(vocab_size / 8) bytes; on
        little-endian machines that is also the layout of 32-bit words that grammar libraries use. Read at once, not kept.
        """
        ...

    def advance(self, state: Any, token_id: int) -> Any:
        """The state after one more sampled token."""
        ...


class AllowedTokens:
    """A `LogitsMask` that lets the same tokens come at every place, end-of-sequence tokens only if they are among them.

    Args:
        token_ids: at least one, all in the vocabulary.
    """

    def __init__(self, token_ids: Iterable[int], vocab_size: int) -> None:
        bits = bytearray((vocab_size + 7) // 8)
        for token_id in token_ids:
            bits[token_id >> 3] |= 1 << (token_id & 7)
        self._bits = bytes(bits)

    def start(self, prompt_ids: Sequence[int]) -> None:
        """See `LogitsMask.start`."""
        return

    def mask(self, state: None) -> bytes:
        """See `LogitsMask.mask`."""
        return self._bits

    def advance(self, state: None, token_id: int) -> None:
        """See `LogitsMask.advance`."""
        return
