# SPDX-License-Identifier: Apache-2.0
"""Paged attention in torch, row-invariant: query tiles and KV tiles have fixed shapes and start at fixed absolute positions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ziggurat.kernels.ops import KVLayer
from ziggurat.kernels.twins.exact import as_tensor, exp, tanh, tree_sum
from ziggurat.kernels.twins.quantized import decode
from ziggurat.programs.formats import FormatSpec

KV_TILE = 64
QUERY_TILE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreRule:
    """What makes a score: the factor, the sliding window (0: none), the soft cap (0: none), and how keys are stored (None: as numbers)."""

    scale: float
    window: int
    softcap: float
    quantized: FormatSpec | None = None


def kv_views(kv: KVLayer) -> tuple[Tensor, Tensor]:
    """The layer's keys and its values, each [blocks, Hkv, block_size, D], as strided views of the pool; bytes of entries instead of D if
    quantized."""
    dtype: torch.dtype = torch.uint8 if kv.format.is_quantized else getattr(torch, kv.format.torch)
    width = kv.format.num_bytes((kv.head_dim,)) // dtype.itemsize
    flat = as_tensor(kv.pool).reshape(-1).view(torch.uint8)
    size = dtype.itemsize
    inner = kv.kv_stride + (kv.num_kv_heads - 1) * kv.head_stride + kv.block_size * width * size
    num_blocks = (flat.numel() - kv.layer_offset - inner) // kv.block_stride + 1
    typed = flat[: flat.numel() // size * size].view(dtype)
    shape = (num_blocks, kv.num_kv_heads, kv.block_size, width)
    outer = kv.block_stride // size, kv.head_stride // size
    first = typed.storage_offset() + kv.layer_offset // size
    key_strides = (width, 1) if kv.format.is_quantized else (1, kv.block_size)
    keys = typed.as_strided(shape, (*outer, *key_strides), first)
    return keys, typed.as_strided(shape, (*outer, width, 1), first + kv.kv_stride // size)


def attend_tile(
    queries: Tensor,
    positions: Tensor,
    table: Tensor,
    entries: tuple[Tensor, Tensor],
    span: tuple[int, int],
    rule: ScoreRule,
) -> Tensor:
    """Online softmax over KV tiles for one query tile.

    Args:
        queries: fp32 [Hkv, R, D], R rows of one tile; rows without a query are zero.
        positions: int64 [R].
        table: int64 block numbers of the sequence.
        entries: the views of `kv_views`.
        span: absolute positions [first, last) that any row sees.

    Returns:
        fp32 [Hkv, R, D].
    """
    heads, num_rows, dim = queries.shape
    maximum = torch.full((heads, num_rows, 1), -torch.inf)
    total = torch.zeros(heads, num_rows, 1)
    out = torch.zeros(heads, num_rows, dim)
    block_size = entries[0].shape[2]
    for start in range(span[0] // KV_TILE * KV_TILE, span[1], KV_TILE):
        first, last = max(start, span[0]), min(start + KV_TILE, span[1])
        where = torch.arange(first, last)
        tile = torch.zeros(2, heads, KV_TILE, dim)
        for part, view in zip(tile, entries, strict=True):
            stored = view[table[where // block_size], :, where % block_size]  # [keys, Hkv, D]
            picked = stored.float() if rule.quantized is None else decode(stored, rule.quantized)
            part[:, first - start : last - start] = picked.transpose(0, 1)
        keys = torch.arange(start, start + KV_TILE)
        visible = keys[None, :] <= positions[:, None]
        if rule.window > 0:
            visible &= keys[None, :] > positions[:, None] - rule.window
        scores = torch.bmm(queries, tile[0].transpose(1, 2)) * rule.scale
        if rule.softcap > 0.0:
            scores = tanh(scores / rule.softcap) * rule.softcap
        scores = torch.where(visible, scores, -torch.inf)
        new_maximum = torch.maximum(maximum, scores.amax(-1, keepdim=True))
        # A row that has seen no key yet has nothing to rescale, and -inf - -inf would be NaN.
        anchor = torch.where(new_maximum == -torch.inf, torch.zeros_like(new_maximum), new_maximum)
        weights = exp(scores - anchor)
        factor = exp(maximum - anchor)
        total = total * factor + tree_sum(weights)
        out = out * factor + torch.bmm(weights, tile[1])
        maximum = new_maximum
    return out / torch.where(total == 0.0, torch.ones_like(total), total)


def attend_sequence(
    q: Tensor, first_position: int, table: Tensor, entries: tuple[Tensor, Tensor], heads_per_kv: int, rule: ScoreRule
) -> Tensor:
    """All query rows [n, Hq, D] of one sequence; tiles start at multiples of 16 positions, whatever the chunk."""
    num_rows, num_heads, dim = q.shape
    num_kv_heads = num_heads // heads_per_kv
    out = torch.empty_like(q)
    last_position = first_position + num_rows
    for start in range(first_position // QUERY_TILE * QUERY_TILE, last_position, QUERY_TILE):
        first, last = max(start, first_position), min(start + QUERY_TILE, last_position)
        tile = torch.zeros(QUERY_TILE, num_kv_heads, heads_per_kv, dim)
        rows = slice(first - first_position, last - first_position)
        tile[first - start : last - start] = q[rows].view(last - first, num_kv_heads, heads_per_kv, dim)
        queries = tile.permute(1, 0, 2, 3).reshape(num_kv_heads, QUERY_TILE * heads_per_kv, dim)
        positions = torch.arange(start, start + QUERY_TILE).repeat_interleave(heads_per_kv)
        span = (max(0, first - rule.window + 1) if rule.window > 0 else 0, last)
        result = attend_tile(queries, positions, table, entries, span, rule)
        result = result.view(num_kv_heads, QUERY_TILE, heads_per_kv, dim).permute(1, 0, 2, 3)
        out[rows] = result[first - start : last - start].reshape(last - first, num_heads, dim)
    return out
