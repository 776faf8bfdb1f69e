# SPDX-License-Identifier: Apache-2.0
"""KIVI's records in torch, as native/kernels/attention/kivi.h has them: 32 values share a scale and a minimum.

A record is ``scale fp16 | minimum fp16 | codes``, the codes in order, from the low end of each byte.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ziggurat.kernels.ops import KVLayer
from ziggurat.kernels.twins.attention import ScoreRule, attend_sequence, kv_views
from ziggurat.kernels.twins.exact import as_tensor

TOKENS = 32
_LARGEST = 65504.0
BITS = {"kivi4": 4, "kivi2": 2}


def encode_records(values: Tensor, bits: int) -> Tensor:
    """Values [.., 32] as records uint8 [.., 4 + 4 bits]. A value that is no number makes its whole record NaN.

    The minimum is rounded down and the scale up to fp16, so that the error is at most scale / 2.
    """
    low, high = values.amin(-1, keepdim=True), values.amax(-1, keepdim=True)
    is_number = values.isfinite().all(-1, keepdim=True)
    minimum = _below(torch.where(is_number, low, 0.0))
    top = 2**bits - 1
    scale = _above(torch.where(is_number, (high - minimum.float()) / top, 0.0))
    step = scale.float()
    inverse = torch.where(step > 0, 1.0 / torch.where(step > 0, step, 1.0), 0.0)
    codes = ((values - minimum.float()) * inverse).round().clamp(0, top)
    codes = torch.where(is_number, codes, 0.0).to(torch.uint8).unflatten(-1, (4 * bits, 8 // bits))
    packed = codes[..., 0].clone()
    for part in range(1, 8 // bits):
        packed |= codes[..., part] << (part * bits)
    minimum = torch.where(is_number, minimum, torch.nan)
    return torch.cat((scale.view(torch.uint8), minimum.view(torch.uint8), packed), -1)


def decode_records(records: Tensor, bits: int) -> Tensor:
    """The inverse of `encode_records`, in fp32."""
    halves = records[..., :4].contiguous().view(torch.float16).float()
    codes = torch.stack([(records[..., 4:] >> (part * bits)) & (2**bits - 1) for part in range(8 // bits)], -1).flatten(
        -2
    )
    # A multiply and an add rounded once, as the native kernels do.
    exact = codes.double() * halves[..., :1].double() + halves[..., 1:].double()
    return exact.float()


def pack_blocks(
    kv: KVLayer, query_starts: Tensor, first_positions: Tensor, tables: Tensor, tail_tables: Tensor
) -> None:
    """See `KernelOps.pack_kv`."""
    assert kv.tail is not None
    tail_keys, tail_values = kv_views(kv.tail)
    records, bits = _records(kv), BITS[kv.format.name]
    for seq, first in enumerate(first_positions.tolist()):
        end = first + int(query_starts[seq + 1] - query_starts[seq])
        for index in range(first // TOKENS, end // TOKENS):
            tail, packed = tail_tables[seq, index], records[tables[seq, index]]
            packed[0] = encode_records(tail_keys[tail].transpose(1, 2), bits)  # [Hkv, D, 32]
            packed[1] = encode_records(tail_values[tail].reshape(kv.num_kv_heads, -1, TOKENS), bits)


def attend(q: Tensor, first_position: int, table: Tensor, tails: Tensor, kv: KVLayer, rule: ScoreRule) -> Tensor:
    """All query rows [n, Hq, D] of one sequence: packed blocks, and each row's own block in plain numbers."""
    assert kv.tail is not None
    num_rows, num_heads, dim = q.shape
    out, heads = torch.empty_like(q), num_heads // kv.num_kv_heads
    plain = kv_views(kv.tail)
    num_blocks = (first_position + num_rows - 1) // TOKENS + 1
    shown = torch.zeros(2, num_blocks, kv.num_kv_heads, TOKENS, dim)
    records, bits = _records(kv), BITS[kv.format.name]
    for index in range(num_blocks - 1):
        values = decode_records(records[table[index]], bits)  # [2, Hkv, D, 32]
        shown[0, index] = values[0].transpose(1, 2)
        shown[1, index] = values[1].reshape(kv.num_kv_heads, TOKENS, dim)
    numbers = torch.arange(num_blocks)
    for own in range(first_position // TOKENS, num_blocks):
        kept = shown[:, own].clone()
        shown[:, own] = torch.stack([part[tails[own]] for part in plain]).float()
        first, last = max(first_position, own * TOKENS), min(first_position + num_rows, (own + 1) * TOKENS)
        rows = slice(first - first_position, last - first_position)
        out[rows] = attend_sequence(q[rows], first, numbers, (shown[0], shown[1]), heads, rule)
        shown[:, own] = kept
    return out


def _records(kv: KVLayer) -> Tensor:
    """The layer's records [blocks, 2, Hkv, D, bytes of a record] as a strided view of the pool."""
    flat = as_tensor(kv.pool).reshape(-1).view(torch.uint8)
    width = 4 + 4 * BITS[kv.format.name]
    inner = kv.kv_stride + (kv.num_kv_heads - 1) * kv.head_stride + kv.head_dim * width
    num_blocks = (flat.numel() - kv.layer_offset - inner) // kv.block_stride + 1
    return flat.as_strided(
        (num_blocks, 2, kv.num_kv_heads, kv.head_dim, width),
        (kv.block_stride, kv.kv_stride, kv.head_stride, width, 1),
        flat.storage_offset() + kv.layer_offset,
    )


def _below(values: Tensor) -> Tensor:
    """The largest fp16 that is not above, within fp16's range."""
    bounded = values.clamp(-_LARGEST, _LARGEST)
    half = bounded.half()
    bits = half.view(torch.int16).int() & 0xFFFF
    lower = torch.where(bits & 0x7FFF == 0, 0x8001, torch.where(bits >= 0x8000, bits + 1, bits - 1))
    return torch.where(half.float() > bounded, lower, bits).to(torch.int16).view(torch.float16)


def _above(values: Tensor) -> Tensor:
    """The smallest fp16 that is not below values >= 0, within fp16's range."""
    half = values.clamp(0, _LARGEST).half()
    bits = half.view(torch.int16)
    return torch.where((half.float() < values) & (bits < 0x7BFF), bits + 1, bits).view(torch.float16)
