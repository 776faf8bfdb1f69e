# SPDX-License-Identifier: Apache-2.0
"""KIVI in numpy: groups of 32 values with a scale and a minimum, and the cache of the publication with its two residuals.

The engine packs keys and values alike, block by block (native/kernels/attention/kivi.h), so that what a position sees depends on the
position alone. The publication keeps the last ``residual`` values of every token's window in full, and quantizes them one by one:
`PaperCache` does so, as the reference for its claims.

Source: Liu et al., "KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache", arXiv 2402.02750, algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ziggurat.errors import ConfigError
from ziggurat.programs.formats import KIVI2, KIVI4, FormatSpec

Floats = NDArray[np.float32]
Halves = NDArray[np.float16]
GROUP = 32
BITS = {KIVI4: 4, KIVI2: 2}
_LARGEST = np.float32(65504.0)


@dataclass(frozen=True, slots=True)
class Groups:
    """Quantized groups along the last axis: codes uint8 [.., groups, 32], and per group scale and minimum in fp16 [.., groups, 1]."""

    codes: NDArray[np.uint8]
    scale: Halves
    minimum: Halves

    def values(self) -> Floats:
        """fp32 [.., groups * 32]: code * scale + minimum, rounded once."""
        exact = self.codes * self.scale.astype(np.float64) + self.minimum.astype(np.float64)
        return exact.astype(np.float32).reshape(*self.codes.shape[:-2], -1)


def quantize(values: Floats, bits: int) -> Groups:
    """Quantize groups of 32 along the last axis.

    The minimum is rounded down and the scale up to fp16: every value lies within the grid, and the error is at most scale / 2. A group of
    equal values has the scale 0; one with NaN or infinity becomes NaN.

    Raises:
        ConfigError: the axis is no whole number of groups, or the bits are none of 2 and 4.
    """
    if bits not in (2, 4):
        raise ConfigError(f"KIVI has 2 or 4 bits, not {bits}")
    if values.shape[-1] % GROUP:
        raise ConfigError(f"{values.shape[-1]} values are not a multiple of group {GROUP}")
    groups = values.reshape(*values.shape[:-1], -1, GROUP).astype(np.float32)
    is_number = np.isfinite(groups).all(-1, keepdims=True)
    known = np.where(is_number, groups, np.float32(0))
    low, high = known.min(-1, keepdims=True), known.max(-1, keepdims=True)
    minimum = round_down(low)
    top = np.float32(2**bits - 1)
    scale = round_up((high - minimum.astype(np.float32)) / top)
    step = scale.astype(np.float32)
    inverse = np.divide(np.float32(1), step, out=np.zeros_like(step), where=step > 0)
    codes = np.clip(np.rint((known - minimum.astype(np.float32)) * inverse), 0, top).astype(np.uint8)
    return Groups(codes, scale, np.where(is_number, minimum, np.float16(np.nan)))


def round_down(values: Floats) -> Halves:
    """The largest fp16 that is not above, within fp16's range."""
    bounded = np.clip(values, -_LARGEST, _LARGEST)
    near = bounded.astype(np.float16)
    with np.errstate(over="ignore", under="ignore"):  # of neighbours that are not taken
        below = np.nextafter(near, np.float16(-np.inf))
    return np.where(near.astype(np.float32) > bounded, below, near)


def round_up(values: Floats) -> Halves:
    """The smallest fp16 that is not below values >= 0, within fp16's range."""
    near = np.minimum(values, _LARGEST).astype(np.float16)
    is_short = (near.astype(np.float32) < values) & (near < np.float16(_LARGEST))
    with np.errstate(over="ignore", under="ignore"):
        above = np.nextafter(near, np.float16(np.inf))
    return np.where(is_short, above, near)


@dataclass(slots=True)
class PaperCache:
    """Keys and values of one head as the publication keeps them: [T, D] each.

    Args:
        bits: 2 or 4.
        residual: R, a multiple of 32: keys are quantized R at a time, when R are there; of the values the last R stay in full, and the
            oldest is quantized when one more comes.
    """

    bits: int
    residual: int = 128
    packed_keys: list[Floats] = field(default_factory=list)
    packed_values: list[Floats] = field(default_factory=list)
    keys: list[Floats] = field(default_factory=list)
    values: list[Floats] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.residual < GROUP or self.residual % GROUP:
            raise ConfigError(f"residual {self.residual} is not a multiple of group {GROUP}")

    def prefill(self, keys: Floats, values: Floats) -> None:
        """The prompt's: what is beyond the residuals is quantized at once."""
        for key, value in zip(keys, values, strict=True):
            self.append(key, value)

    def append(self, key: Floats, value: Floats) -> None:
        """One token's, and then the two rules."""
        self.keys.append(key)
        self.values.append(value)
        if len(self.keys) == self.residual:
            whole = np.stack(self.keys)
            self.packed_keys.append(np.ascontiguousarray(quantize(np.ascontiguousarray(whole.T), self.bits).values().T))
            self.keys.clear()
        if len(self.values) == self.residual + 1:
            self.packed_values.append(quantize(self.values.pop(0)[None], self.bits).values())

    def shown(self) -> tuple[Floats, Floats]:
        """Keys and values as attention sees them, [T, D]."""
        return np.concatenate([*self.packed_keys, *(row[None] for row in self.keys)]), np.concatenate(
            [*self.packed_values, *(row[None] for row in self.values)]
        )

    def num_bytes(self, full_bytes: int = 2) -> int:
        """Codes, scales, minima and residuals, the latter with so many bytes per value."""
        dim = int((self.packed_values or self.values)[0].shape[-1])
        num_packed = sum(len(part) for part in (*self.packed_keys, *self.packed_values))
        num_full = len(self.keys) + len(self.values)
        return num_packed * dim * (self.bits + 1) // 8 + num_full * dim * full_bytes


def cache_bytes(num_tokens: int, values_per_token: int, spec: FormatSpec) -> int:
    """Bytes that the engine keeps of a sequence: whole blocks packed, the block that is not full in fp32. `values_per_token` counts keys
    and values of all layers."""
    packed, rest = num_tokens // GROUP * GROUP, num_tokens % GROUP
    return spec.num_bytes((packed, values_per_token)) + (GROUP if rest else 0) * values_per_token * 4
