# SPDX-License-Identifier: Apache-2.0
"""One-bit predictions for eviction: where bits come from, what the right ones are, and how wrong given ones were.

Source: Antoniadis et al., Paging with Succinct Predictions, ICML 2023 (arXiv 2210.02775). A bit comes with every use and is kept with
the id until the next one. 1 says "safe to evict", 0 says "keep".
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Protocol

from ziggurat.memory.eviction.belady import Belady, Future
from ziggurat.memory.eviction.flat import FlatCache
from ziggurat.memory.eviction.protocol import CacheShape, Entry


class BitSource(Protocol):
    """Is asked once per use, in order."""

    def bit(self, entry: Entry) -> int:
        """The prediction that comes with this use."""
        ...


class GivenBits:
    """Bits of a recorded trace, one per request.

    Attributes:
        num_missing: requests without a bit: they were taken to be 0.
    """

    def __init__(self, bits: Sequence[int | None]) -> None:
        self._bits = bits
        self._next = 0
        self.num_missing = 0

    def bit(self, entry: Entry) -> int:
        """The next one."""
        found = self._bits[self._next] if self._next < len(self._bits) else None
        self._next += 1
        self.num_missing += found is None
        return found or 0


def discard_bits(trace: Sequence[int], capacity: int) -> list[int]:
    """1 at a request if Belady's rule (ties by page) evicts the page before its next request; what is held at the end has 0. O(n log n)."""
    future = Future.of([page] for page in trace)
    cache = FlatCache(Belady(CacheShape(capacity_blocks=capacity), future), capacity)
    bits = [0] * len(trace)
    last: dict[int, int] = {}
    for now, page in enumerate(trace):
        future.now = now
        victim = cache.request(page)
        if victim is not None:
            bits[last[victim]] = 1
        last[page] = now
    return bits


def phase_starts(trace: Sequence[int], capacity: int) -> list[int]:
    """Where the k-phases begin: each is the longest run of requests with at most ``capacity`` different pages."""
    starts: list[int] = []
    held: set[int] = set()
    for now, page in enumerate(trace):
        if not starts or (page not in held and len(held) == capacity):
            starts.append(now)
            held = set()
        held.add(page)
    return starts


def phase_bits(trace: Sequence[int], capacity: int) -> list[int]:
    """0 at a request if its page is asked for in the next phase, 1 if not (and in the last phase, after which nothing comes)."""
    starts = [*phase_starts(trace, capacity), len(trace)]
    phases = [set(trace[start:end]) for start, end in itertools.pairwise(starts)]
    bits = []
    for number, (start, end) in enumerate(itertools.pairwise(starts)):
        following = phases[number + 1] if number + 1 < len(phases) else set()
        bits += [int(page not in following) for page in trace[start:end]]
    return bits


@dataclass(frozen=True, slots=True, kw_only=True)
class BitErrors:
    """``eta0``: bits that say 0 and should say 1; ``eta1``: bits that say 1 and should say 0."""

    eta0: int
    eta1: int


def discard_errors(given: Sequence[int], right: Sequence[int]) -> BitErrors:
    """Counted at every request."""
    pairs = list(zip(given, right, strict=True))
    return BitErrors(eta0=pairs.count((0, 1)), eta1=pairs.count((1, 0)))


def phase_errors(given: Sequence[int], right: Sequence[int], trace: Sequence[int], capacity: int) -> BitErrors:
    """Counted once per page and phase, at its last request there: only that bit is used."""
    starts = [*phase_starts(trace, capacity), len(trace)]
    last = [
        index
        for start, end in itertools.pairwise(starts)
        for index in {trace[index]: index for index in range(start, end)}.values()
    ]
    return discard_errors([given[index] for index in last], [right[index] for index in last])


def flipped(bits: Sequence[int], share: float, dice: Random) -> list[int]:
    """Each bit wrong with that probability: 0 perfect, 0.5 noise without meaning, 1 adversarial."""
    return [bit ^ (dice.random() < share) for bit in bits]
