# SPDX-License-Identifier: Apache-2.0
"""Accuracies with confidence bounds."""

from __future__ import annotations

import math
from dataclasses import dataclass

_Z_95 = 1.959963984540054


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """`num_correct` of `num_items`, with the 95 % Wilson score interval."""

    num_items: int
    num_correct: int

    @property
    def value(self) -> float:
        return self.num_correct / self.num_items if self.num_items else 0.0

    def wilson_bounds(self, z: float = _Z_95) -> tuple[float, float]:
        """Lower and upper bound of the Wilson (1927) interval; (0, 1) without items."""
        n = self.num_items
        if n == 0:
            return 0.0, 1.0
        p, denominator = self.value, 1 + z * z / n
        center = (p + z * z / (2 * n)) / denominator
        half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / denominator
        return max(0.0, center - half), min(1.0, center + half)
