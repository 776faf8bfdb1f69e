# SPDX-License-Identifier: Apache-2.0
"""``best_of``: of the continuations of a prompt, keep those whose tokens were the most likely on average. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence

from ziggurat.scheduling.protocol import SampledToken


class Ranking:
    """Mean log-probabilities of the continuations of one prompt, as their tokens come."""

    def __init__(self) -> None:
        self._sums: dict[int, float] = {}
        self._counts: dict[int, int] = {}

    def add(self, index: int, tokens: Sequence[SampledToken]) -> None:
        """New tokens of continuation ``index``; they have log-probabilities if the request is ranked."""
        self._sums[index] = self._sums.get(index, 0.0) + sum(token.logprob or 0.0 for token in tokens)
        self._counts[index] = self._counts.get(index, 0) + len(tokens)

    def best(self, n: int) -> list[int]:
        """The n best, best first; among equals the one with the lower index. A continuation without tokens is the worst."""

        def key(index: int) -> tuple[float, int]:
            count = self._counts[index]
            return (-self._sums[index] / count if count else float("inf"), index)

        return sorted(self._sums, key=key)[:n]
