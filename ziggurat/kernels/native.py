# SPDX-License-Identifier: Apache-2.0
"""The native library behind `KernelOps`: checks shapes, passes addresses, returns when the kernel is done."""

from __future__ import annotations

from types import ModuleType

from ziggurat.kernels.arrays import (
    BLOCK_CODES,
    FLOAT_CODES,
    address,
    block_bytes,
    block_format,
    check,
    check_blocks,
    check_out_features,
    check_scratch,
    dtype_name,
    float_format,
    grouped_shape,
    is_contiguous,
    num_bytes,
    optional_address,
    panel_shape,
    rows,
)
from ziggurat.kernels.kv_arguments import attention_call, check_tables, kv_arguments
from ziggurat.kernels.lora_entries import check_entries
from ziggurat.kernels.ops import Array, KVLayer
from ziggurat.programs.formats import PANEL_WIDTH

ACTIVATION_CODES = {"silu": 0, "gelu_tanh": 1}


class NativeOps:
    """`KernelOps` by the native library; see there for shapes and layouts."""

    name = "native"

    def __init__(self, library: ModuleType, *, num_threads: int | None = None) -> None:
        self._lib = library
        if num_threads is not None:
            library.set_num_threads(num_threads)

    def pack_rows(self, rows: Array, panels: Array, *, first_row: int = 0) -> None:
        """See `KernelOps.pack_rows`."""
        if (blocks := _block_arguments(rows, panels, first_row)) is not None:
            self._lib.pack_blocks(*blocks)
        else:
            self._lib.pack_panels(*_pack_arguments(rows, panels, first_row))

    def unpack_rows(self, panels: Array, rows: Array, *, first_row: int = 0) -> None:
        """See `KernelOps.unpack_rows`."""
        if (blocks := _block_arguments(rows, panels, first_row)) is not None:
            self._lib.unpack_blocks(*blocks)
        else:
            self._lib.unpack_panels(*_pack_arguments(rows, panels, first_row))

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
        num_panels, k = panel_shape(panels)
        num_rows, out_features = x.shape[0], out.shape[1]
        check_out_features(num_panels, out_features)
        x_stride, out_stride = rows(x, "x", None, k), rows(out, "out", num_rows)
        if bias is not None:
            check(bias, "bias", "float32", (out_features,))
        places = optional_address(bias), address(out), out_stride, num_rows, k, out_features, accumulate
        spec = block_format(panels)
        if spec is None:
            code = FLOAT_CODES[float_format(panels, "panels").name]
            self._lib.linear(address(x), x_stride, address(panels), code, *places)
            return
        check_scratch(scratch, num_rows, k)
        code = BLOCK_CODES[spec.name]
        self._lib.quantized_linear(address(x), x_stride, address(panels), code, *places, optional_address(scratch))

    def embed_rows(self, ids: Array, panels: Array, out: Array, *, scale: float = 1.0) -> None:
        """See `KernelOps.embed_rows`."""
        num_panels, k = panel_shape(panels)
        check(ids, "ids", "int64", (None,))
        num_rows = ids.shape[0]
        if num_rows and not 0 <= int(ids.min()) <= int(ids.max()) < num_panels * PANEL_WIDTH:
            raise ValueError(f"ids: {int(ids.min())} .. {int(ids.max())} outside {num_panels * PANEL_WIDTH} rows")
        out_stride = rows(out, "out", num_rows, k)
        spec = block_format(panels)
        if spec is not None:
            kernel, code = self._lib.quantized_embed, BLOCK_CODES[spec.name]
        else:
            kernel, code = self._lib.embed_rows, FLOAT_CODES[float_format(panels, "panels").name]
        kernel(address(ids), address(panels), code, address(out), out_stride, num_rows, k, scale)

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
        num_rows, k = x.shape
        check(weight, "weight", "float32", (k,))
        x_stride, out_stride = rows(x, "x"), rows(out, "out", num_rows, k)
        delta_stride = 0 if delta is None else rows(delta, "delta", num_rows, k)
        self._lib.rms_norm(
            address(x),
            x_stride,
            optional_address(delta),
            delta_stride,
            address(weight),
            address(out),
            out_stride,
            num_rows,
            k,
            eps,
            weight_offset,
        )

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
        num_rows = qkv.shape[0]
        stride = rows(qkv, "qkv", None, (num_heads + 2 * kv.num_kv_heads) * kv.head_dim)
        check(positions, "positions", "int64", (num_rows,))
        check(slot_mapping, "slot_mapping", "int64", (num_rows,))
        check(cos, "cos", "float32", (None, None))
        check(sin, "sin", "float32", tuple(cos.shape))
        for name, norm in (("q_norm", q_norm), ("k_norm", k_norm)):
            if norm is not None:
                check(norm, name, "float32", (kv.head_dim,))
        self._lib.qkv_post(
            address(qkv),
            stride,
            address(positions),
            address(slot_mapping),
            address(cos),
            address(sin),
            num_rows,
            num_heads,
            2 * cos.shape[1],
            optional_address(q_norm),
            optional_address(k_norm),
            eps,
            weight_offset,
            *kv_arguments(kv),
        )

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
        if num_heads % kv.num_kv_heads:
            raise ValueError(f"{num_heads} query heads do not divide among {kv.num_kv_heads} KV heads")
        q_stride, out_stride = rows(qkv, "qkv"), rows(out, "out", None, num_heads * kv.head_dim)
        num_seqs = check_tables(query_starts, first_positions, block_tables)
        if kv.tail is not None:
            call = attention_call(kv, query_starts, first_positions, block_tables, tail_tables, window)
            places = address(qkv), q_stride, address(out), out_stride
            self._lib.packed_attention(*places, *call.tables, num_heads, scale, softcap, *call.layers)
            return
        self._lib.paged_attention(
            address(qkv),
            q_stride,
            address(out),
            out_stride,
            address(query_starts),
            address(first_positions),
            address(block_tables),
            block_tables.shape[1],
            num_seqs,
            num_heads,
            scale,
            window,
            softcap,
            *kv_arguments(kv),
        )

    def pack_kv(
        self, kv: KVLayer, *, query_starts: Array, first_positions: Array, block_tables: Array, tail_tables: Array
    ) -> None:
        """See `KernelOps.pack_kv`."""
        call = attention_call(kv, query_starts, first_positions, block_tables, tail_tables, 0)
        self._lib.pack_kv(*call.tables, *call.layers)

    def gated_activation(self, gate_up: Array, out: Array, *, kind: str = "silu") -> None:
        """See `KernelOps.gated_activation`."""
        num_rows, f = out.shape
        gate_stride, out_stride = rows(gate_up, "gate_up", num_rows, 2 * f), rows(out, "out")
        self._lib.gated_activation(
            address(gate_up), gate_stride, address(out), out_stride, num_rows, f, ACTIVATION_CODES[kind]
        )

    def add(self, x: Array, delta: Array) -> None:
        """See `KernelOps.add`."""
        num_rows, k = x.shape
        x_stride, delta_stride = rows(x, "x"), rows(delta, "delta", num_rows, k)
        self._lib.add(address(x), x_stride, address(delta), delta_stride, num_rows, k)

    def soft_cap(self, x: Array, *, cap: float) -> None:
        """See `KernelOps.soft_cap`."""
        self._lib.soft_cap(address(x), rows(x, "x"), x.shape[0], x.shape[1], cap)

    def route(self, logits: Array, out: Array, *, top_k: int, normalize: bool) -> None:
        """See `KernelOps.route`."""
        num_rows, num_experts = check_route(logits, out, top_k)
        strides = rows(logits, "logits"), rows(out, "out")
        self._lib.route(address(logits), strides[0], address(out), strides[1], num_rows, num_experts, top_k, normalize)

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
        num_tokens, k, n = grouped_shape(x, panels, routing, out, num_experts, top_k, is_routed)
        self._lib.grouped_linear(
            address(x),
            rows(x, "x"),
            1 if is_routed else top_k,
            address(panels),
            FLOAT_CODES[float_format(panels, "panels").name],
            address(routing),
            rows(routing, "routing"),
            address(out),
            rows(out, "out"),
            num_tokens,
            num_experts,
            top_k,
            k,
            n,
        )

    def lora(self, x: Array, out: Array, entries: Array, scales: Array) -> None:
        """See `KernelOps.lora`."""
        check_entries(x, out, entries, scales)
        k, count = x.shape[1], entries.shape[0]
        places = address(x), rows(x, "x"), address(out), rows(out, "out", x.shape[0])
        self._lib.lora(*places, k, address(entries), address(scales), count)

    def combine(self, x: Array, routing: Array, out: Array, *, top_k: int, accumulate: bool = False) -> None:
        """See `KernelOps.combine`."""
        num_rows, k = out.shape
        x_stride, routing_stride = rows(x, "x", num_rows * top_k, k), rows(routing, "routing", num_rows, 2 * top_k)
        self._lib.combine(
            address(x),
            x_stride,
            address(routing),
            routing_stride,
            address(out),
            rows(out, "out"),
            num_rows,
            k,
            top_k,
            accumulate,
        )

    def select_rows(self, x: Array, rows: Array, out: Array) -> None:
        """See `KernelOps.select_rows`."""
        x_stride, out_stride = check_select(x, rows, out)
        self._lib.select_rows(address(x), x_stride, address(rows), address(out), out_stride, *out.shape)

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
        there, steps = pool if source is None else source, strides or (block_bytes, block_bytes)
        check_pairs(pool, there, pairs, block_bytes, steps)
        self._lib.copy_blocks(address(there), address(pool), address(pairs), pairs.shape[0], *steps, block_bytes)


def check_route(logits: Array, out: Array, top_k: int) -> tuple[int, int]:
    """(tokens, experts) of a routing; there are at least as many experts as are taken."""
    num_rows, num_experts = logits.shape
    rows(out, "out", num_rows, 2 * top_k)
    if not 0 < top_k <= num_experts:
        raise ValueError(f"top_k {top_k} of {num_experts} experts")
    return num_rows, num_experts


def check_select(x: Array, row_numbers: Array, out: Array) -> tuple[int, int]:
    """Strides of source and target; every row number is one of the source's."""
    num_rows, k = out.shape
    check(row_numbers, "rows", "int64", (num_rows,))
    if num_rows and not 0 <= int(row_numbers.min()) <= int(row_numbers.max()) < x.shape[0]:
        raise ValueError(f"rows: {int(row_numbers.min())} .. {int(row_numbers.max())} outside {x.shape[0]} rows")
    return rows(x, "x", None, k), rows(out, "out")


def check_pairs(pool: Array, source: Array, pairs: Array, block_bytes: int, strides: tuple[int, int]) -> None:
    """Copies stay inside the pools."""
    check(pairs, "pairs", "int64", (None, 2))
    for numbers, array, stride in ((pairs[:, 0], source, strides[0]), (pairs[:, 1], pool, strides[1])):
        num_blocks = (num_bytes(array) - block_bytes) // stride + 1
        if numbers.shape[0] and not 0 <= int(numbers.min()) <= int(numbers.max()) < num_blocks:
            raise ValueError(
                f"pairs: blocks {int(numbers.min())} .. {int(numbers.max())} outside a pool of {num_blocks}"
            )


def _block_arguments(source: Array, panels: Array, first_row: int) -> tuple[int, ...] | None:
    """Arguments to move quantized rows; None for panels of plain numbers."""
    spec = block_format(panels)
    if spec is None:
        return None
    num_rows, num_blocks = check_blocks(source, panels, spec, first_row)
    return address(source), address(panels), first_row, num_rows, num_blocks, block_bytes(spec)


def _pack_arguments(source: Array, panels: Array, first_row: int) -> tuple[int, ...]:
    num_panels, k = panel_shape(panels)
    if dtype_name(source) != dtype_name(panels):
        raise TypeError(f"rows are {dtype_name(source)}, panels {dtype_name(panels)}: packing does not convert")
    num_rows, width = source.shape
    if width != k or not 0 <= first_row <= first_row + num_rows <= num_panels * panels.shape[2]:
        raise ValueError(f"rows [{num_rows}, {width}] from {first_row} on do not fit panels {list(panels.shape)}")
    if not is_contiguous(source):
        raise ValueError("rows: must be contiguous")
    code = FLOAT_CODES[float_format(panels, "panels").name]
    return address(source), address(panels), first_row, num_rows, k, code
