# SPDX-License-Identifier: Apache-2.0
"""Rotary embeddings as data: the inverse frequencies of a head."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeSpec:
    """Parameters of the rotary embedding.

    Attributes:
        theta: the base.
        dim: rotated values per head (even).
    """

    theta: float
    dim: int

    def inverse_frequencies(self) -> list[float]:
        """``theta ** (-2 i / dim)`` for i in 0 .. dim/2 (radians per position)."""
        return [self.theta ** (-(2 * i) / self.dim) for i in range(self.dim // 2)]

    def table_bytes(self, max_position: int) -> int:
        """Bytes of the fp32 cosine and sine tables for that many positions."""
        return 2 * max_position * (self.dim // 2) * 4
