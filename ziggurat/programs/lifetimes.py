# SPDX-License-Identifier: Apache-2.0
"""Offline placement of buffers whose lifetimes are known: offsets in one arena such that live buffers never overlap."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ziggurat.units import round_up

ALIGNMENT_BYTES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A buffer that is alive in the half-open range of steps [first, last) and takes ``num_bytes``."""

    first: int
    last: int
    num_bytes: int

    def overlaps(self, other: Interval) -> bool:
        """Whether both are alive at some step."""
        return self.first < other.last and other.first < self.last


def place(intervals: Mapping[str, Interval]) -> tuple[dict[str, int], int]:
    """Offsets of all buffers and the size of the arena.

    Largest first, each at the lowest offset that is free during its whole life; ties by name, so the answer depends on nothing
    but its input. O(n^2); plans have a few dozen buffers.

    Returns:
        (offset by name, arena bytes).
    """
    order = sorted(intervals, key=lambda name: (-intervals[name].num_bytes, name))
    offsets: dict[str, int] = {}
    total = 0
    for name in order:
        mine = intervals[name]
        size = round_up(mine.num_bytes, ALIGNMENT_BYTES)
        taken = sorted(
            (offsets[other], round_up(intervals[other].num_bytes, ALIGNMENT_BYTES))
            for other in offsets
            if mine.overlaps(intervals[other])
        )
        offset = 0
        for start, length in taken:
            if offset + size <= start:
                break
            offset = max(offset, start + length)
        offsets[name] = offset
        total = max(total, offset + size)
    return offsets, total
