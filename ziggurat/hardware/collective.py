# SPDX-License-Identifier: Apache-2.0
"""Collectives: seconds by size, from a table of medians per node layout and number of ranks.

Libraries switch algorithms with the size, so a single ``alpha + S / bandwidth`` misses by up to a third; between the measured sizes the
table is interpolated on logarithms, beyond them it goes on with the last bandwidth (above) or the last latency (below).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ziggurat.hardware.families import F64
from ziggurat.hardware.samples import Sample
from ziggurat.hardware.specs import find_device

# Knots per table: enough for every switch of algorithm, few enough to smooth what is noise.
NUM_KNOTS = 24
Key = tuple[str, str, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectiveTable:
    """Knots (log bytes, log seconds) per (device, collective, ranks, ranks per node)."""

    knots: dict[Key, tuple[F64, F64]]

    def predict(self, samples: Sequence[Sample]) -> F64:
        """Seconds of each sample; a layout without a table takes that of the nearest one, scaled by 2 (n - 1) / n of a ring."""
        return np.asarray([self._one(sample) for sample in samples])

    def _one(self, sample: Sample) -> float:
        key = layout(sample)
        found = key if key in self.knots else self._nearest(key)
        sizes, times = self.knots[found]
        size = np.log(sample.shape["bytes"])
        log_time = float(np.interp(size, sizes, times))
        if size > sizes[-1]:
            log_time += size - sizes[-1]
        return float(np.exp(log_time)) * ring_share(key[2]) / ring_share(found[2])

    def _nearest(self, key: Key) -> Key:
        def distance(other: Key) -> tuple[bool, bool, bool, float]:
            is_across = (key[2] > key[3]) != (other[2] > other[3])
            return other[0] != key[0], other[1] != key[1], is_across, abs(np.log2(other[2] / key[2]))

        return min(self.knots, key=distance)


def ring_share(num_ranks: float) -> float:
    """Share of the data that each link of a ring carries in an all-reduce."""
    return 2 * (num_ranks - 1) / num_ranks if num_ranks > 1 else 1.0


def layout(sample: Sample) -> Key:
    """What has a table of its own."""
    return sample.device, sample.op, sample.shape["ranks"], sample.shape["per_node"]


def fit_table(samples: Sequence[Sample]) -> CollectiveTable:
    """Medians of neighbouring sizes, about `NUM_KNOTS` of them per layout, equally spaced in the logarithm of the size."""
    groups: dict[Key, list[tuple[float, float]]] = defaultdict(list)
    for sample in samples:
        groups[layout(sample)].append((np.log(sample.shape["bytes"]), np.log(sample.time_s)))
    return CollectiveTable(knots={key: _knots(np.asarray(sorted(rows))) for key, rows in groups.items()})


def _knots(rows: F64) -> tuple[F64, F64]:
    low, high = rows[0, 0], rows[-1, 0]
    edges = np.linspace(low, high, NUM_KNOTS + 1)[1:-1]
    parts = [part for part in np.split(rows, np.searchsorted(rows[:, 0], edges)) if len(part)]
    return np.asarray([np.mean(part[:, 0]) for part in parts]), np.asarray([np.median(part[:, 1]) for part in parts])


def ideal_seconds(samples: Sequence[Sample]) -> F64:
    """The published link alone, as a ring."""
    return np.asarray(
        [
            ring_share(sample.shape["ranks"]) * sample.num_bytes / (find_device(sample.device).value("link_gb_s") * 1e9)
            for sample in samples
        ]
    )
