# SPDX-License-Identifier: Apache-2.0
"""The operations that an executor calls, their layouts, and the choice between the native library and the torch twins.

Shape letters: T rows (tokens) of a step, K inner and N outer size of a linear, P panels, D head size, Hq and Hkv heads of
queries and of KV, S sequences, F width of the MLP, B blocks of a block table.

Arrays are torch CPU tensors or numpy arrays; bf16 needs torch, or numpy uint16. The last dimension is always contiguous; rows
may have a stride. Nothing is allocated here: outputs and pools belong to the caller.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol

from ziggurat.errors import ConfigError
from ziggurat.programs.formats import PANEL_WIDTH, FormatSpec
from ziggurat.registry import nearest

__all__ = ["BACKENDS", "PANEL_WIDTH", "Array", "KVLayer", "KernelOps", "describe", "load_native", "select"]

BACKENDS = ("auto", "native", "torch")
_ABI = 5
"""Of native/module/module.cpp; raised there and here when a signature changes."""

MAX_LORA_RANK = 512

Array = Any
"""A torch CPU tensor or a numpy array."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KVLayer:
    """Where one layer's keys and values lie in a block-major pool.

    KV head ``h`` of part ``p`` (0 keys, 1 values) of block ``b`` starts at byte
    ``b * block_stride + layer_offset + p * kv_stride + h * head_stride`` of ``pool``. There lie the entries of the block's token slots one
    after another, [slot][D]; keys in plain numbers lie [D][slot], so that attention multiplies sixteen tokens at a time where they are.

    Attributes:
        pool: the arena that holds all blocks of this group; any dtype, contiguous.
        format: storage of the entries: fp32, bf16, fp16, or q8_0 and q4_0, whose entries are blocks of 32 values with a scale and are
            quantized as they are written (native/kernels/attention/entries.h), or kivi4 and kivi2, whose blocks of 32 tokens are packed by
            `KernelOps.pack_kv` (native/kernels/attention/kivi.h): a head's part is then D records of 32 values.
        block_size: tokens per block.
        num_kv_heads, head_dim: shape of an entry; ``head_dim`` is a multiple of 8, and of 32 for quantized formats.
        block_stride, layer_offset, kv_stride, head_stride: bytes, multiples of the item size of plain formats.
        tail: for kivi4 and kivi2, where blocks are written until they are packed: fp32, another pool with tables of its own.
    """

    pool: Array
    format: FormatSpec
    block_size: int
    num_kv_heads: int
    head_dim: int
    block_stride: int
    layer_offset: int
    kv_stride: int
    head_stride: int
    tail: KVLayer | None = None

    @classmethod
    def of_group(
        cls,
        pool: Array,
        spec: FormatSpec,
        *,
        block_size: int,
        num_kv_heads: int,
        head_dim: int,
        place: int = 0,
        num_layers: int = 1,
    ) -> KVLayer:
        """Layer number ``place`` of a group whose blocks hold [layer][key | value][KV head] without gaps."""
        head = spec.num_bytes((block_size, head_dim))
        part = num_kv_heads * head
        return cls(
            pool=pool,
            format=spec,
            block_size=block_size,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            block_stride=num_layers * 2 * part,
            layer_offset=place * 2 * part,
            kv_stride=part,
            head_stride=head,
        )


class KernelOps(Protocol):
    """The operations of one backend. Every output row is bit-identical whatever the other rows, their number, the chunking or
    the number of threads; two backends agree within rounding only.
    """

    name: str

    def pack_rows(self, rows: Array, panels: Array, *, first_row: int = 0) -> None:
        """Interleave ``rows`` [R, K] into ``panels`` [P, K, 16] of the same dtype, as rows ``first_row .. first_row + R``.

        Quantized rows are uint8 [R, K / 32 * bytes of a block] as ggml stores them, and go as they are into panels
        [P, K / 32, 16 * bytes of a block].

        Several matrices packed one after another make one fused linear (q, k, v; gate, up). Lanes past the last row are left
        as they are; no operation reads their results.
        """
        ...

    def unpack_rows(self, panels: Array, rows: Array, *, first_row: int = 0) -> None:
        """The inverse of `pack_rows`: fill ``rows`` [R, K] from the panels."""
        ...

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
        """``out = x @ W.T (+ bias) (+ out)``.

        Args:
            x: fp32 [T, K].
            panels: [P, K, 16], bf16, fp16 or fp32, from `pack_rows`.
            out: fp32 [T, N] with ``16 * (P - 1) < N <= 16 * P``; must not overlap ``x``.
            bias: fp32 [N].
            accumulate: add the product to what ``out`` holds (the residual stream).
            scratch: fp32 [T, K / 32 * 10], needed by quantized panels and by no others: x is quantized into it, each 32 values of a
                row to int8 with a scale of max / 127. Products inside such a group are exact, groups are added in rising order. A
                row that holds NaN or infinity gives NaN; a group whose values are all below 2**-100 counts as zeros.
        """
        ...

    def embed_rows(self, ids: Array, panels: Array, out: Array, *, scale: float = 1.0) -> None:
        """``out[t] = scale * W[ids[t]]`` from the panels of a (tied) embedding; ids int64 [T], out fp32 [T, K]."""
        ...

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
        """``x += delta`` in place if given, then ``out = x / sqrt(mean(x^2) + eps) * (weight_offset + weight)``.

        Args:
            x: fp32 [T, K].
            weight: fp32 [K].
            out: fp32 [T, K]; may be ``x`` itself.
            weight_offset: 1.0 for Gemma.
            delta: fp32 [T, K].
        """
        ...

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
        """Finish q, k and v of a fused projection: optional per-head RMS norm, rotary embedding, write to the KV pool.

        Args:
            qkv: fp32 [T, (Hq + 2 Hkv) * D], changed in place (q is used from here; k is left rotated, v as it is).
            positions: int64 [T], rows of the rotary tables.
            slot_mapping: int64 [T], ``block * block_size + slot``; -1 writes nothing.
            cos, sin: fp32 [max_pos, rot / 2] with ``rot <= D``; halves are rotated as Hugging Face does.
            kv: where keys and values go.
            num_heads: Hq.
            q_norm, k_norm: fp32 [D], both or neither (Qwen3).
        """
        ...

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
        """Causal attention of a ragged batch, prefill chunks and decodes in one call.

        Query row ``r`` of sequence ``s`` (``query_starts[s] <= r < query_starts[s + 1]``) stands at position
        ``first_positions[s] + r - query_starts[s]`` and sees the keys ``j`` with ``j <= position`` and, if ``window > 0``,
        ``j > position - window``. Their entries must have been written (`qkv_post`).

        Args:
            qkv: fp32 [T, >= Hq * D]; the first Hq * D columns are the queries.
            out: fp32 [T, Hq * D].
            query_starts: int32 [S + 1], rising; ``query_starts[S] <= T``.
            first_positions: int32 [S].
            block_tables: int32 [S, B]; -1 for blocks that no query sees any more.
            num_heads: Hq, a multiple of ``kv.num_kv_heads``.
            scale: factor of the scores, usually ``D ** -0.5``.
            window: sliding window in tokens, 0 for none.
            softcap: if above zero, scores become ``softcap * tanh(score / softcap)`` before the softmax (Gemma 2).
            tail_tables: int32 [S, B] into ``kv.tail``, needed with packed formats and by no others. A query then sees the block that it
                stands in in plain numbers and all before it packed, and there is no window.
        """
        ...

    def pack_kv(
        self, kv: KVLayer, *, query_starts: Array, first_positions: Array, block_tables: Array, tail_tables: Array
    ) -> None:
        """Pack the blocks of 32 tokens that this step's rows have filled, from ``kv.tail`` into ``kv``: after `qkv_post`, before
        `paged_attention`, with the same arrays."""
        ...

    def gated_activation(self, gate_up: Array, out: Array, *, kind: str = "silu") -> None:
        """``out = act(gate) * up`` with ``gate_up`` fp32 [T, 2F] (gate first), out fp32 [T, F]; kind ``silu`` or ``gelu_tanh``."""
        ...

    def add(self, x: Array, delta: Array) -> None:
        """``x += delta``, both fp32 [T, K]."""
        ...

    def soft_cap(self, x: Array, *, cap: float) -> None:
        """``x = cap * tanh(x / cap)`` in place, fp32 [T, K]."""
        ...

    def route(self, logits: Array, out: Array, *, top_k: int, normalize: bool) -> None:
        """The ``top_k`` experts of each token by softmax probability; of equal ones the lower number first.

        Args:
            logits: fp32 [T, E]; used up, undefined afterwards.
            out: fp32 [T, 2 * top_k]: the experts' numbers, then their probabilities. A row of NaN keeps NaN probabilities.
            normalize: divide the chosen probabilities by their sum.
        """
        ...

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
        """Each routed row times its own expert's matrix: ``out[t * top_k + j] = x[..] @ W[routing[t, j]].T``.

        Any split of the rows among the experts is right, none or all included; nothing is padded. Beyond ``out`` a call takes
        index lists of 4 bytes per routed row and 12 per expert.

        Args:
            x: fp32, [T * top_k, K] if ``is_routed``, else [T, K] and row t serves all experts of token t; must not overlap ``out``.
            panels: [E * P, K, 16]: expert e has panels ``[e * P, (e + 1) * P)``.
            routing: fp32 [T, 2 * top_k], from `route`.
            out: fp32 [T * top_k, 16 * P].

        Raises:
            ValueError: the shapes do not fit, or a row names an expert that does not exist.
        """
        ...

    def combine(self, x: Array, routing: Array, out: Array, *, top_k: int, accumulate: bool = False) -> None:
        """``out[t] = sum over j of probability[t, j] * x[t * top_k + j] (+ out[t])``, j rising; x fp32 [T * top_k, K], out fp32 [T, K]."""
        ...

    def lora(self, x: Array, out: Array, entries: Array, scales: Array) -> None:
        """``out[row, column : column + n] += scale * (x[row] @ A.T) @ B`` for the rows of every entry: adapters of any rank side by side.

        Entries that share rows must write different columns. Rows of A and B may be made of shards of a pool (MoS, arXiv 2410.00938); the
        bits are those of the assembled matrices.

        Args:
            x: fp32 [T, K], K a multiple of 8.
            out: fp32 [T, N].
            entries: int64 [E, 12]: first row, number of rows, address of A [rank, K], address of B [rank, n], rank (at most
                `MAX_LORA_RANK`), column, n (a multiple of 8), dtype of A and B (0 fp32, 1 bf16, 2 fp16); address of A's index, of B's,
                shards per row of A, of B. An index is 0, with 1 shard per row, or int32 [rank, shards]: A (B) is then a pool of shards
                of K (n) / shards values, a multiple of 8. The caller keeps all of it alive.
            scales: fp32 [E].
        """
        ...

    def select_rows(self, x: Array, rows: Array, out: Array) -> None:
        """``out[i] = x[rows[i]]``; x fp32 [T, K], rows int64 [R], out fp32 [R, K], which must not overlap ``x``."""
        ...

    def copy_blocks(
        self,
        pool: Array,
        pairs: Array,
        *,
        block_bytes: int,
        source: Array | None = None,
        strides: tuple[int, int] | None = None,
    ) -> None:
        """Copy whole blocks inside a contiguous pool, or into it from another: ``pairs`` int64 [n, 2] of (source, destination), all
        distinct destinations that are nobody's source.

        Args:
            source: the other pool; None is ``pool`` itself.
            strides: bytes from block to block in source and destination; None is ``block_bytes`` in both.
        """
        ...


def load_native() -> ModuleType | None:
    """The native library, or None if this installation was built without a C++ compiler.

    Raises:
        ConfigError: the library was built from other sources than these.
    """
    try:
        library = importlib.import_module("ziggurat.kernels._native")
    except ModuleNotFoundError:
        return None
    found = getattr(library, "ABI", 0)
    if found != _ABI:
        raise ConfigError(
            f"the native library {library.__file__} has interface {found}, this Python code needs {_ABI}: "
            "it was built from other sources. Rebuild it with `make native`"
        )
    return library


def select(backend: str = "auto", *, num_threads: int | None = None) -> KernelOps:
    """The operations of a backend: ``native``, ``torch``, or ``auto`` for native if it is there.

    Args:
        num_threads: threads of the compute pool; None leaves it as it is.

    Raises:
        ConfigError: no such backend, or native was asked for and is not built.
    """
    if backend not in BACKENDS:
        raise ConfigError(
            f"unknown kernels {backend!r}{nearest(backend, list(BACKENDS)) or '.'} Known: {', '.join(BACKENDS)}"
        )
    library = load_native() if backend != "torch" else None
    if library is not None:
        from ziggurat.kernels.native import NativeOps

        return NativeOps(library, num_threads=num_threads)
    if backend == "native":
        raise ConfigError(
            "the native kernels are not built (the installation found no working C++ compiler). Install g++ or clang++ and "
            "repeat `make env`, or use --kernels torch, which is slower"
        )
    from ziggurat.kernels.twins import TorchOps

    return TorchOps(num_threads=num_threads)


def describe(backend: str = "auto") -> dict[str, str | int]:
    """What `select` would run: ``backend``, ``isa``, ``threads`` and ``note`` (why it is slower, or empty)."""
    library = load_native() if backend != "torch" else None
    if library is not None:
        return {"backend": "native", "isa": str(library.isa()), "threads": int(library.num_threads()), "note": ""}
    import os

    asked = "as asked" if backend == "torch" else "the native library is not built"
    note = f"slower: torch twins run instead of native kernels ({asked})"
    return {"backend": "torch", "isa": "torch", "threads": os.cpu_count() or 1, "note": note}
