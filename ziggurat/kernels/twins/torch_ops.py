# SPDX-License-Identifier: Apache-2.0
"""`KernelOps` in plain torch. Clear before fast: it is what native kernels are tested against, and what runs without a compiler."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ziggurat.kernels.arrays import (
    block_format,
    check_out_features,
    check_scratch,
    float_format,
    grouped_shape,
    panel_shape,
)
from ziggurat.kernels.kv_arguments import check_kv, check_packed
from ziggurat.kernels.lora_entries import check_entries
from ziggurat.kernels.native import check_pairs, check_route, check_select
from ziggurat.kernels.ops import Array, KVLayer
from ziggurat.kernels.twins import kivi, quantized
from ziggurat.kernels.twins.attention import ScoreRule, attend_sequence, kv_views
from ziggurat.kernels.twins.exact import as_tensor, assembled, exp, rms_norm, tanh, tree_sum
from ziggurat.programs.formats import PANEL_WIDTH, FormatSpec

# BLAS picks its algorithm by the shape, so every product has this many rows, padded with zeros, and this many panels at most.
ROW_TILE = 16
PANEL_GROUP = 64


class TorchOps:
    """`KernelOps` by torch; see there for shapes and layouts."""

    name = "torch"

    def __init__(self, *, num_threads: int | None = None) -> None:
        if num_threads is not None:
            torch.set_num_threads(num_threads)

    def pack_rows(self, rows: Array, panels: Array, *, first_row: int = 0) -> None:
        """See `KernelOps.pack_rows`."""
        source, target = as_tensor(rows), as_tensor(panels)
        if (spec := block_format(target)) is not None:
            quantized.pack(source, target, spec, first_row)
            return
        panel_shape(target)
        index = torch.arange(first_row, first_row + source.shape[0])
        target[index // PANEL_WIDTH, :, index % PANEL_WIDTH] = source

    def unpack_rows(self, panels: Array, rows: Array, *, first_row: int = 0) -> None:
        """See `KernelOps.unpack_rows`."""
        target, source = as_tensor(rows), as_tensor(panels)
        if (spec := block_format(source)) is not None:
            quantized.unpack(source, target, spec, first_row)
            return
        panel_shape(source)
        index = torch.arange(first_row, first_row + target.shape[0])
        target.copy_(source[index // PANEL_WIDTH, :, index % PANEL_WIDTH])

    def linear(
        self,
        x: Array,
        panels: Array,
        out: Array,
        *,
        bias: Array | None = None,
        accumulate: bool = False,
        scratch: Array | None = None,
    ) -> None:
        """See `KernelOps.linear`."""
        rows, weights, result = as_tensor(x), as_tensor(panels), as_tensor(out)
        num_panels, k = panel_shape(weights)
        check_out_features(num_panels, result.shape[1])
        num_rows, spec = rows.shape[0], block_format(weights)
        if spec is not None:
            check_scratch(scratch, num_rows, k)
        if num_rows == 0:
            return
        product_with = _product_of(rows, spec)
        for first in range(0, num_panels, PANEL_GROUP):
            columns = slice(first * PANEL_WIDTH, min((first + PANEL_GROUP) * PANEL_WIDTH, result.shape[1]))
            product = product_with(weights[first : first + PANEL_GROUP])
            product = product[:num_rows, : columns.stop - columns.start]
            if bias is not None:
                product = product + as_tensor(bias)[columns]
            result[:, columns] = product + result[:, columns] if accumulate else product

    def embed_rows(self, ids: Array, panels: Array, out: Array, *, scale: float = 1.0) -> None:
        """See `KernelOps.embed_rows`."""
        index, spec = as_tensor(ids), block_format(panels)
        if spec is not None:
            quantized.embed(index, as_tensor(panels), as_tensor(out), spec, scale)
            return
        as_tensor(out).copy_(as_tensor(panels)[index // PANEL_WIDTH, :, index % PANEL_WIDTH].float() * scale)

    def rms_norm(
        self,
        x: Array,
        weight: Array,
        out: Array,
        *,
        eps: float,
        weight_offset: float = 0.0,
        delta: Array | None = None,
    ) -> None:
        """See `KernelOps.rms_norm`."""
        rows = as_tensor(x)
        if delta is not None:
            rows += as_tensor(delta)
        as_tensor(out).copy_(rms_norm(rows, as_tensor(weight), eps, weight_offset))

    def qkv_post(
        self,
        qkv: Array,
        *,
        positions: Array,
        slot_mapping: Array,
        cos: Array,
        sin: Array,
        kv: KVLayer,
        num_heads: int,
        q_norm: Array | None = None,
        k_norm: Array | None = None,
        eps: float = 1e-6,
        weight_offset: float = 0.0,
    ) -> None:
        """See `KernelOps.qkv_post`."""
        check_kv(kv)
        rows, slots = as_tensor(qkv), as_tensor(slot_mapping)
        num_rows, dim = rows.shape[0], kv.head_dim
        heads = rows.unflatten(1, (num_heads + 2 * kv.num_kv_heads, dim))
        q, k, v = heads.split((num_heads, kv.num_kv_heads, kv.num_kv_heads), dim=1)
        index = as_tensor(positions)
        tables = as_tensor(cos)[index][:, None], as_tensor(sin)[index][:, None]
        for part, norm in ((q, q_norm), (k, k_norm)):
            if norm is not None:
                part.copy_(rms_norm(part, as_tensor(norm), eps, weight_offset))
            _rotate(part, *tables)
        written = slots >= 0
        views = kv_views(kv)
        block, slot = slots[written] // kv.block_size, slots[written] % kv.block_size
        for view, part in zip(views, (k, v), strict=True):
            rows = part[written]
            view[block, :, slot] = quantized.encode(rows, kv.format) if kv.format.is_quantized else rows.to(view.dtype)
        assert num_rows == slots.shape[0], "one slot per row"

    def paged_attention(
        self,
        qkv: Array,
        out: Array,
        *,
        query_starts: Array,
        first_positions: Array,
        block_tables: Array,
        kv: KVLayer,
        num_heads: int,
        scale: float,
        window: int = 0,
        softcap: float = 0.0,
        tail_tables: Array | None = None,
    ) -> None:
        """See `KernelOps.paged_attention`."""
        check_kv(kv)
        rows, result = as_tensor(qkv), as_tensor(out)
        starts, tables = as_tensor(query_starts).tolist(), as_tensor(block_tables).long()
        q = rows[:, : num_heads * kv.head_dim].unflatten(1, (num_heads, kv.head_dim))
        if kv.tail is not None:
            check_packed(kv, tail_tables, len(tables), window)
            tails, rule = as_tensor(tail_tables).long(), ScoreRule(scale=scale, window=0, softcap=softcap)
            for s, first_position in enumerate(as_tensor(first_positions).tolist()):
                part = slice(starts[s], starts[s + 1])
                result[part] = kivi.attend(q[part], first_position, tables[s], tails[s], kv, rule).flatten(1)
            return
        stored = kv.format if kv.format.is_quantized else None
        rule, entries = ScoreRule(scale=scale, window=window, softcap=softcap, quantized=stored), kv_views(kv)
        for s, first_position in enumerate(as_tensor(first_positions).tolist()):
            begin, end = starts[s], starts[s + 1]
            attended = attend_sequence(
                q[begin:end], first_position, tables[s], entries, num_heads // kv.num_kv_heads, rule
            )
            result[begin:end] = attended.flatten(1)

    def pack_kv(
        self, kv: KVLayer, *, query_starts: Array, first_positions: Array, block_tables: Array, tail_tables: Array
    ) -> None:
        """See `KernelOps.pack_kv`."""
        check_packed(kv, tail_tables, first_positions.shape[0], 0)
        arrays = (as_tensor(array) for array in (query_starts, first_positions, block_tables, tail_tables))
        kivi.pack_blocks(kv, *arrays)

    def gated_activation(self, gate_up: Array, out: Array, *, kind: str = "silu") -> None:
        """See `KernelOps.gated_activation`."""
        gate, up = as_tensor(gate_up).chunk(2, dim=1)
        if kind == "silu":
            denominator = 1.0 + exp(-gate)
        else:
            assert kind == "gelu_tanh", kind
            denominator = 1.0 + exp(gate * (gate * gate * 0.044715 + 1.0) * (-2.0 * 0.7978845608028654))
        as_tensor(out).copy_(gate / denominator * up)

    def add(self, x: Array, delta: Array) -> None:
        """See `KernelOps.add`."""
        as_tensor(x).add_(as_tensor(delta))

    def soft_cap(self, x: Array, *, cap: float) -> None:
        """See `KernelOps.soft_cap`."""
        rows = as_tensor(x)
        rows.copy_(tanh(rows / cap) * cap)

    def route(self, logits: Array, out: Array, *, top_k: int, normalize: bool) -> None:
        """See `KernelOps.route`."""
        check_route(logits, out, top_k)
        rows, result = as_tensor(logits), as_tensor(out)
        weights = exp(rows - rows.amax(-1, keepdim=True))
        probabilities, experts = torch.sort(weights / tree_sum(weights), dim=-1, descending=True, stable=True)
        result[:, :top_k] = experts[:, :top_k]
        chosen = probabilities[:, :top_k]
        result[:, top_k:] = chosen / tree_sum(chosen) if normalize else chosen

    def grouped_linear(
        self,
        x: Array,
        panels: Array,
        routing: Array,
        out: Array,
        *,
        num_experts: int,
        top_k: int,
        is_routed: bool,
    ) -> None:
        """See `KernelOps.grouped_linear`."""
        grouped_shape(x, panels, routing, out, num_experts, top_k, is_routed)
        float_format(panels, "panels")
        rows, weights, result = as_tensor(x), as_tensor(panels), as_tensor(out)
        chosen = as_tensor(routing)[:, :top_k].reshape(-1)
        if not bool(((chosen >= 0) & (chosen < num_experts)).all()):
            raise ValueError("routing: a row names an expert that does not exist")
        experts, num_panels = chosen.long(), weights.shape[0] // num_experts
        for expert in experts.unique().tolist():
            where = (experts == expert).nonzero()[:, 0]
            padded = _padded(rows[where if is_routed else where // top_k])
            for first in range(0, num_panels, PANEL_GROUP):
                last = min(first + PANEL_GROUP, num_panels)
                product = _tiled_product(padded, weights[expert * num_panels + first : expert * num_panels + last])
                result[where, first * PANEL_WIDTH : last * PANEL_WIDTH] = product[: len(where)]

    def combine(self, x: Array, routing: Array, out: Array, *, top_k: int, accumulate: bool = False) -> None:
        """See `KernelOps.combine`."""
        result = as_tensor(out)
        rows = as_tensor(x).unflatten(0, (-1, top_k))
        weights = as_tensor(routing)[:, top_k:, None]
        total = rows[:, 0] * weights[:, 0]
        for j in range(1, top_k):
            total = total + rows[:, j] * weights[:, j]
        result.copy_(result + total if accumulate else total)

    def lora(self, x: Array, out: Array, entries: Array, scales: Array) -> None:
        """See `KernelOps.lora`."""
        check_entries(x, out, entries, scales)
        values, result = as_tensor(x), as_tensor(out)
        for entry, scale in zip(as_tensor(entries).tolist(), as_tensor(scales).tolist(), strict=True):
            first, count, a_address, b_address, rank, column, n, code, a_index, b_index, a_shards, b_shards = entry
            a = assembled(a_address, (rank, values.shape[1]), code, a_index, a_shards)
            b = assembled(b_address, (rank, n), code, b_index, b_shards)
            for row in range(first, first + count):
                inner = tree_sum(values[row] * a)
                result[row, column : column + n] += scale * tree_sum((inner * b).T)[:, 0]

    def select_rows(self, x: Array, rows: Array, out: Array) -> None:
        """See `KernelOps.select_rows`."""
        check_select(x, rows, out)
        as_tensor(out).copy_(as_tensor(x)[as_tensor(rows)])

    def copy_blocks(
        self,
        pool: Array,
        pairs: Array,
        *,
        block_bytes: int,
        source: Array | None = None,
        strides: tuple[int, int] | None = None,
    ) -> None:
        """See `KernelOps.copy_blocks`."""
        steps = strides or (block_bytes, block_bytes)
        check_pairs(pool, pool if source is None else source, pairs, block_bytes, steps)
        target = _blocks_of(pool, block_bytes, steps[1])
        origin = _blocks_of(pool if source is None else source, block_bytes, steps[0])
        index = as_tensor(pairs)
        target[index[:, 1]] = origin[index[:, 0]]


def _blocks_of(pool: Array, block_bytes: int, stride: int) -> Tensor:
    flat = as_tensor(pool).reshape(-1).view(torch.uint8)
    count = (flat.numel() - block_bytes) // stride + 1
    return flat.as_strided((count, block_bytes), (stride, 1), flat.storage_offset())


def _product_of(rows: Tensor, spec: FormatSpec | None) -> Callable[[Tensor], Tensor]:
    """The product of the rows with the matrix of some panels; what belongs to the rows alone is done once."""
    if spec is not None:
        return partial(quantized.product, quantized.quantize(rows), spec)
    return partial(_tiled_product, _padded(rows))


def _padded(rows: Tensor) -> Tensor:
    """The rows, and rows of zeros up to whole tiles."""
    padded = torch.zeros(-(-len(rows) // ROW_TILE) * ROW_TILE, rows.shape[1])
    padded[: len(rows)] = rows
    return padded


def _tiled_product(padded: Tensor, panels: Tensor) -> Tensor:
    """Rows [n * 16, K] times the matrix of some panels [P, K, 16], one tile at a time: [n * 16, P * 16]."""
    matrix = panels.permute(1, 0, 2).reshape(padded.shape[1], -1).float()
    return torch.cat([padded[row : row + ROW_TILE] @ matrix for row in range(0, len(padded), ROW_TILE)])


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Hugging Face's rotate_half on the first ``2 * cos.shape[-1]`` values of x [T, heads, D], in place."""
    half = cos.shape[-1]
    a, b = x[..., :half].clone(), x[..., half : 2 * half].clone()
    x[..., :half] = a * cos - b * sin
    x[..., half : 2 * half] = b * cos + a * sin
