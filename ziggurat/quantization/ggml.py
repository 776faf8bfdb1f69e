# SPDX-License-Identifier: Apache-2.0
"""ggml's block formats in numpy. The same numbers, bit for bit, as the ``gguf`` package and llama.cpp's reference code.

Layouts are those of ``ggml-common.h``; a row is a sequence of blocks, each with its own scale:

    Q8_0   32 values: scale f16, 32 x i8                                  value = scale * q
    Q4_0   32 values: scale f16, 16 bytes (low nibbles first)             value = scale * (q - 8)
    Q4_K  256 values: scale f16, least f16, 8 x (6-bit scale, 6-bit least), 128 bytes of nibbles
                                                                          value = (scale * s) * q - least * m
    Q6_K  256 values: 128 bytes low 4 bits, 64 bytes high 2 bits, 16 x i8 scales, scale f16
                                                                          value = (scale * s) * (q - 32)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ziggurat.programs.formats import BF16, FP16, FP32, Q4_0, Q4_K, Q6_K, Q8_0, FormatSpec

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

# Blocks are decoded in groups that stay in the cache, so that temporaries are small whatever the tensor's size.
_GROUP_VALUES = 1 << 16


def decode(spec: FormatSpec, packed: Bytes, out: Floats) -> None:
    """Decode rows.

    Args:
        spec: a quantized format.
        packed: [rows, bytes of a row], contiguous.
        out: [rows, values], contiguous, filled.
    """
    decoder = _DECODERS[spec.name]
    block_bytes = spec.num_bytes((spec.block_values,))
    blocks, values = packed.reshape(-1, block_bytes), out.reshape(-1, spec.block_values)
    assert len(blocks) == len(values), f"{len(blocks)} blocks for {len(values)} blocks of values"
    step = _GROUP_VALUES // spec.block_values
    with np.errstate(invalid="ignore", over="ignore"):  # a scale may be infinite or NaN; the loader counts and says so
        for start in range(0, len(blocks), step):
            values[start : start + step] = decoder(blocks[start : start + step])


def encode(spec: FormatSpec, values: Floats) -> NDArray[Any]:
    """Rows of a format, ready to be written.

    Args:
        spec: fp32, fp16, bf16, Q8_0 or Q4_0.
        values: [rows, values], finite; for quantized formats the values of a row are a multiple of 32.

    Returns:
        Rows of the same number: f32, f16, or bytes.
    """
    if spec == FP32:
        return values
    if spec == FP16:
        with np.errstate(over="ignore"):  # infinity says it; the caller looks for it
            return values.astype(np.float16)
    if spec == BF16:
        return _encode_bf16(values)
    packed = np.empty((len(values), spec.num_bytes(values.shape[1:])), np.uint8)
    encode_blocks(spec, values, packed)
    return packed


def encode_blocks(spec: FormatSpec, values: Floats, out: Bytes) -> None:
    """Encode rows into a quantized format, rounding to nearest as ggml's reference code does.

    Args:
        spec: Q8_0 or Q4_0.
        values: [rows, values], contiguous and finite; the values of a row are a multiple of 32.
        out: [rows, bytes of a row], contiguous, filled. A scale beyond fp16 becomes infinite: the caller looks for it.
    """
    encoder = _ENCODERS[spec.name]
    blocks, packed = values.reshape(-1, spec.block_values), out.reshape(-1, spec.num_bytes((spec.block_values,)))
    assert len(blocks) == len(packed), f"{len(blocks)} blocks of values for {len(packed)} blocks"
    step = _GROUP_VALUES // spec.block_values
    with np.errstate(over="ignore"):
        for start in range(0, len(blocks), step):
            scale, stored = encoder(blocks[start : start + step])
            packed[start : start + step, :2] = scale.astype(np.float16).view(np.uint8)
            packed[start : start + step, 2:] = stored


def bf16_to_fp32(stored: NDArray[np.uint16]) -> Floats:
    """bf16 is the upper half of an fp32."""
    return (stored.astype(np.uint32) << np.uint32(16)).view(np.float32)


def _encode_bf16(values: Floats) -> Bytes:
    bits = np.ascontiguousarray(values).view(np.uint32)
    # Round to nearest, ties to even; NaN keeps its sign and stays NaN (ggml_compute_fp32_to_bf16).
    rounded = (bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(16)
    quiet = (bits >> np.uint32(16)) | np.uint32(64)
    is_nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    return np.where(is_nan, quiet, rounded).astype(np.uint16).view(np.uint8)


def _inverse(scale: Floats) -> Floats:
    """One over a scale; 0 for a subnormal one, whose inverse is infinite and which is 0 in fp16 anyway."""
    is_zero = np.abs(scale) < np.finfo(np.float32).tiny
    inverse: Floats = np.where(is_zero, np.float32(0), np.float32(1) / np.where(is_zero, np.float32(1), scale))
    return inverse


def _encode_q8_0(blocks: Floats) -> tuple[Floats, Bytes]:
    scale = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    scaled = blocks * _inverse(scale)
    # C's roundf: halves away from zero.
    size = np.abs(scaled)
    floor = np.floor(size)
    rounded = np.sign(scaled) * (floor + np.floor(np.float32(2) * (size - floor)))
    return scale, rounded.astype(np.int8).view(np.uint8)


def _encode_q4_0(blocks: Floats) -> tuple[Floats, Bytes]:
    # The value furthest from 0, the first of equals, becomes -8 exactly; its sign is the scale's.
    furthest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=1)[:, None], axis=1)
    scale: Floats = furthest / np.float32(-8)
    # Product and sum are rounded one after the other, as in the package `gguf`; a C compiler may fuse them.
    shifted = blocks * _inverse(scale) + np.float32(8.5)
    q = np.minimum(shifted.astype(np.int8), np.int8(15)).astype(np.uint8)
    return scale, q[:, :16] | (q[:, 16:] << np.uint8(4))


def _half(blocks: Bytes, start: int) -> Floats:
    """The f16 at that byte of every block, as a column."""
    return np.ascontiguousarray(blocks[:, start : start + 2]).view(np.float16).astype(np.float32)


def _decode_q8_0(blocks: Bytes) -> Floats:
    return _half(blocks, 0) * np.ascontiguousarray(blocks[:, 2:]).view(np.int8).astype(np.float32)


def _decode_q4_0(blocks: Bytes) -> Floats:
    nibbles = blocks[:, 2:]
    q = np.concatenate([nibbles & 15, nibbles >> 4], axis=1).astype(np.int8) - np.int8(8)
    return _half(blocks, 0) * q.astype(np.float32)


def _decode_q4_k(blocks: Bytes) -> Floats:
    scales = blocks[:, 4:16]
    low, middle, high = scales[:, 0:4], scales[:, 4:8], scales[:, 8:12]
    # Six bits each: the first four in the low bits of a byte, the last four put together from a nibble and two high bits.
    scale = np.concatenate([low & 63, (high & 15) | ((low >> 6) << 4)], axis=1)
    least = np.concatenate([middle & 63, (high >> 4) | ((middle >> 6) << 4)], axis=1)
    d = (_half(blocks, 0) * scale.astype(np.float32))[:, :, None]
    m = (_half(blocks, 2) * least.astype(np.float32))[:, :, None]
    nibbles = blocks[:, 16:].reshape(-1, 4, 1, 32)
    q = np.concatenate([nibbles & 15, nibbles >> 4], axis=2).reshape(-1, 8, 32).astype(np.float32)
    result: Floats = (d * q - m).reshape(-1, 256)
    return result


def _decode_q6_k(blocks: Bytes) -> Floats:
    # Per half of 128 values: 64 bytes of low bits (nibbles), 32 bytes of high bits (pairs), in four runs of 32 values.
    low = blocks[:, :128].reshape(-1, 2, 2, 32)
    low = np.concatenate([low & 15, low >> 4], axis=2)
    high = blocks[:, 128:192].reshape(-1, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1)
    q = (low | ((high & 3) << 4)).astype(np.int8) - np.int8(32)
    scale = np.ascontiguousarray(blocks[:, 192:208]).view(np.int8).astype(np.float32)
    d = (_half(blocks, 208) * scale)[:, :, None]
    result: Floats = (d * q.reshape(-1, 16, 16).astype(np.float32)).reshape(-1, 256)
    return result


_ENCODERS: dict[str, Callable[[Floats], tuple[Floats, Bytes]]] = {Q8_0.name: _encode_q8_0, Q4_0.name: _encode_q4_0}
_DECODERS: dict[str, Callable[[Bytes], Floats]] = {
    Q8_0.name: _decode_q8_0,
    Q4_0.name: _decode_q4_0,
    Q4_K.name: _decode_q4_k,
    Q6_K.name: _decode_q6_k,
}
