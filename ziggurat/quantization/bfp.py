# SPDX-License-Identifier: Apache-2.0
"""Block floating point: blocks of values with one exponent byte and small signed mantissas.

::

    block   exponent e + 127 (0: all zero, 255: NaN or infinity in it) | mantissas of p bits, two's complement, low bits first
    value   m * 2^(e - p + 2),   e = floor(log2(max |x|)),   |m| <= 2^(p - 1) - 1,   rounded half to even

A dot product of two blocks is one of integers, and one addition of exponents. BFP12 has mantissas of 4 bits, BFP16 of 8, both beside
an exponent of 8: p / 8 + 1 / n bytes per value.

Source: "Accurate Block Quantization in LLMs with Outliers", arXiv 2403.20137, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ziggurat.errors import ConfigError

Bytes = NDArray[np.uint8]
Peak = Literal["clip", "bump", "mse"]
_BIAS = 127
_ZERO, _NAN = 0, 255


@dataclass(frozen=True, slots=True, kw_only=True)
class BfpSpec:
    """A format.

    Attributes:
        mantissa_bits: p, 2 to 8.
        block: n, values along the last axis that share an exponent; a multiple of 8.
        peak: what becomes of a block whose largest value rounds beyond the largest mantissa: clipped, given the next exponent, or
            whichever leaves less squared error.
    """

    mantissa_bits: int = 4
    block: int = 32
    peak: Peak = "mse"

    def __post_init__(self) -> None:
        if not 2 <= self.mantissa_bits <= 8:
            raise ConfigError(f"mantissas have 2 to 8 bits, not {self.mantissa_bits}")
        if self.block <= 0 or self.block % 8:
            raise ConfigError(f"a block of {self.block} values is no multiple of 8")

    @property
    def block_bytes(self) -> int:
        """Of the exponent and the mantissas."""
        return 1 + self.mantissa_bits * self.block // 8

    def num_bytes(self, num_values: int) -> int:
        """Of whole blocks."""
        return num_values // self.block * self.block_bytes


@dataclass(frozen=True, slots=True)
class BfpTensor:
    """Packed values: uint8 [.., blocks, block bytes]."""

    spec: BfpSpec
    packed: Bytes

    def mantissas(self) -> NDArray[np.int32]:
        """[.., blocks, n]."""
        p, shape = self.spec.mantissa_bits, self.packed.shape[:-1]
        bits = np.unpackbits(self.packed[..., 1:], axis=-1, bitorder="little").reshape(*shape, self.spec.block, p)
        codes = (bits.astype(np.int32) << np.arange(p)).sum(-1)
        return np.asarray(codes - ((codes >> (p - 1)) << p), dtype=np.int32)

    def exponents(self) -> NDArray[np.int32]:
        """[.., blocks]: e of the formula."""
        return self.packed[..., 0].astype(np.int32) - _BIAS

    def values(self) -> NDArray[np.float32]:
        """fp32 [.., blocks * n]; NaN throughout a block that held something else than numbers."""
        steps = np.ldexp(1.0, self.exponents() - self.spec.mantissa_bits + 2)
        found = self.mantissas() * np.where(self.packed[..., 0] == _NAN, np.nan, steps)[..., None]
        return found.astype(np.float32).reshape(*self.packed.shape[:-2], -1)


def encode(values: NDArray[np.floating], spec: BfpSpec) -> BfpTensor:
    """Pack along the last axis.

    Raises:
        ConfigError: the axis is no whole number of blocks.
    """
    if values.shape[-1] % spec.block:
        raise ConfigError(f"{values.shape[-1]} values are no whole number of blocks of {spec.block}")
    blocks = values.reshape(*values.shape[:-1], -1, spec.block).astype(np.float64)
    is_number = np.asarray(np.isfinite(blocks).all(-1))
    blocks = np.where(is_number[..., None], blocks, 0.0)
    peak = np.abs(blocks).max(-1)
    low = np.clip(np.frexp(peak)[1] - 1, 1 - _BIAS, _BIAS)
    mantissas, error = _rounded(blocks, low, spec)
    if spec.peak != "clip":
        raised, other = _rounded(blocks, np.minimum(low + 1, _BIAS), spec)
        top = 2 ** (spec.mantissa_bits - 1) - 1
        rounds_over = np.rint(np.ldexp(peak, spec.mantissa_bits - 2 - low)) > top
        takes = np.asarray(rounds_over & (low < _BIAS) & (other < error if spec.peak == "mse" else np.True_))
        mantissas, low = np.where(takes[..., None], raised, mantissas), low + takes
    exponents = np.where(is_number, np.where(peak > 0, low + _BIAS, _ZERO), _NAN).astype(np.uint8)
    return BfpTensor(spec, np.concatenate([exponents[..., None], _packed(mantissas, spec)], axis=-1))


def _rounded(
    blocks: NDArray[np.float64], exponents: NDArray[np.integer], spec: BfpSpec
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    top = 2 ** (spec.mantissa_bits - 1) - 1
    shift = (spec.mantissa_bits - 2 - exponents)[..., None]
    scaled = np.ldexp(blocks, shift)
    mantissas = np.clip(np.rint(scaled), -top, top)
    return mantissas.astype(np.int64), ((mantissas - scaled) ** 2 * np.ldexp(1.0, -2 * shift)).sum(-1)


def _packed(mantissas: NDArray[np.int64], spec: BfpSpec) -> Bytes:
    bits = (mantissas[..., None] >> np.arange(spec.mantissa_bits)) & 1
    flat = bits.astype(np.uint8).reshape(*mantissas.shape[:-1], -1)
    return np.packbits(flat, axis=-1, bitorder="little")


def dot(a: BfpTensor, b: BfpTensor) -> NDArray[np.float32]:
    """Dot products along the last axis: integers inside a block, exponents added, blocks summed in fp32. Shapes broadcast.

    Raises:
        ConfigError: blocks of different lengths.
    """
    if a.spec.block != b.spec.block or a.packed.shape[-2] != b.packed.shape[-2]:
        raise ConfigError(
            f"{a.packed.shape[-2]} blocks of {a.spec.block} values against {b.packed.shape[-2]} of {b.spec.block}"
        )
    whole = (a.mantissas() * b.mantissas()).sum(-1)
    shift = a.exponents() + b.exponents() - a.spec.mantissa_bits - b.spec.mantissa_bits + 4
    parts = np.ldexp(whole.astype(np.float32), shift)
    is_nan = (a.packed[..., 0] == _NAN) | (b.packed[..., 0] == _NAN)
    return np.asarray(np.where(is_nan, np.float32(np.nan), parts).sum(-1, dtype=np.float32))
