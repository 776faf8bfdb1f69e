# SPDX-License-Identifier: Apache-2.0
"""The dense half of a store: unit vectors in one growing matrix, searched exactly."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
# Rows are searched in parts that stay in the processor's cache.
_PART_ROWS = 4096


class Vectors:
    """Rows by number; a matrix that doubles when it is full. fp32: 1.5 KiB per memory with 384 dimensions."""

    def __init__(self, dimensions: int) -> None:
        self.dimensions = dimensions
        self._rows: F32 = np.zeros((256, dimensions), dtype=np.float32)
        self._seqs: NDArray[np.int64] = np.zeros(256, dtype=np.int64)
        self._places: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._places)

    def put(self, rows: Iterable[tuple[int, F32]]) -> None:
        """Add or replace rows.

        Raises:
            ValueError: a row has another length, or is not finite.
        """
        for seq, row in rows:
            if row.shape != (self.dimensions,) or not np.isfinite(row).all():
                raise ValueError(
                    f"vector of memory {seq}: {row.shape} values, {self.dimensions} finite ones are needed"
                )
            place = self._places.setdefault(seq, len(self._places))
            if place == len(self._rows):
                self._rows = np.concatenate([self._rows, np.zeros_like(self._rows)])
                self._seqs = np.concatenate([self._seqs, np.zeros_like(self._seqs)])
            self._rows[place], self._seqs[place] = row, seq

    def remove(self, seq: int) -> None:
        """Forget a row: the last one takes its place, and its values are overwritten."""
        place = self._places.pop(seq, None)
        if place is None:
            return
        last = len(self._places)
        if place != last:
            self._rows[place], self._seqs[place] = self._rows[last], self._seqs[last]
            self._places[int(self._seqs[place])] = place
        self._rows[last] = 0

    def nearest(self, query: F32, limit: int) -> list[tuple[int, float]]:
        """(number, cosine) of the closest rows, best first; equal ones by number."""
        count = len(self._places)
        if not count:
            return []
        close = np.concatenate(
            [self._rows[start : min(start + _PART_ROWS, count)] @ query for start in range(0, count, _PART_ROWS)]
        )
        limit = min(limit, count)
        best = np.argpartition(-close, limit - 1)[:limit]
        order = sorted(best.tolist(), key=lambda place: (-close[place], self._seqs[place]))
        return [(int(self._seqs[place]), float(close[place])) for place in order]

    def of(self, seq: int) -> F32 | None:
        """A row."""
        place = self._places.get(seq)
        return None if place is None else self._rows[place]
