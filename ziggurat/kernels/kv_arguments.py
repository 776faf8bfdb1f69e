# SPDX-License-Identifier: Apache-2.0
"""What kernels are told of keys and values, checked before an address leaves Python."""

from __future__ import annotations

from dataclasses import dataclass

from ziggurat.errors import UnsupportedFeature
from ziggurat.kernels.arrays import KV_CODES, PACKED_CODES, address, check, is_contiguous
from ziggurat.kernels.ops import Array, KVLayer
from ziggurat.programs.formats import FP32

MAX_HEAD_DIM = 256


def check_kv(kv: KVLayer) -> None:
    """What both backends ask of a KV layer.

    Raises:
        UnsupportedFeature: a head size that the kernels cannot do.
    """
    if kv.head_dim % 8 or not 0 < kv.head_dim <= MAX_HEAD_DIM:
        raise UnsupportedFeature(
            f"head size {kv.head_dim}: the attention kernels need a multiple of 8, at most {MAX_HEAD_DIM}",
            feature="head_dim",
        )
    if kv.head_dim % kv.format.block_values:
        raise UnsupportedFeature(
            f"head size {kv.head_dim} is no multiple of {kv.format.block_values}: keys and values cannot be kept in {kv.format.name}",
            feature="kv-cache-dtype",
        )
    if not is_contiguous(kv.pool):
        raise ValueError("kv.pool: must be contiguous")


def kv_arguments(kv: KVLayer) -> tuple[int, ...]:
    """The KV part of an argument list, in the order of native/module/module.cpp."""
    check_kv(kv)
    return (
        address(kv.pool) + kv.layer_offset,
        KV_CODES[kv.format.name],
        kv.block_size,
        kv.num_kv_heads,
        kv.head_dim,
        kv.block_stride,
        kv.kv_stride,
        kv.head_stride,
    )


def check_tables(query_starts: Array, first_positions: Array, block_tables: Array) -> int:
    """Shapes of a ragged batch; returns the number of sequences."""
    num_seqs = int(first_positions.shape[0])
    check(query_starts, "query_starts", "int32", (num_seqs + 1,))
    check(first_positions, "first_positions", "int32", (num_seqs,))
    check(block_tables, "block_tables", "int32", (num_seqs, None))
    return num_seqs


@dataclass(frozen=True, slots=True)
class PackedCall:
    """Parts of an argument list, in the order of native/module/module.cpp."""

    tables: tuple[int, ...]
    layers: tuple[int, ...]


def check_packed(kv: KVLayer, tail_tables: Array | None, num_seqs: int, window: int) -> KVLayer:
    """What both backends ask of packed keys and values; returns the tail.

    Raises:
        UnsupportedFeature: a window.
        ValueError: a layout that the kernels do not know.
    """
    tail = kv.tail
    if window:
        raise UnsupportedFeature(
            f"{kv.format.name} keeps whole contexts: a window is not served", feature="kivi:window"
        )
    is_known = kv.format.name in PACKED_CODES and kv.block_size == kv.format.block_tokens
    if not is_known or tail is None or tail.format != FP32 or tail_tables is None:
        raise ValueError(f"{kv.format.name}: blocks of {kv.block_size} tokens with such a tail are not packed")
    check_kv(tail)
    check(tail_tables, "tail_tables", "int32", (num_seqs, None))
    return tail


def attention_call(
    kv: KVLayer,
    query_starts: Array,
    first_positions: Array,
    block_tables: Array,
    tail_tables: Array | None,
    window: int,
) -> PackedCall:
    """The arguments that `packed_attention` and `pack_kv` share."""
    num_seqs = check_tables(query_starts, first_positions, block_tables)
    tail = check_packed(kv, tail_tables, num_seqs, window)
    assert tail_tables is not None
    return PackedCall(
        (
            address(query_starts),
            address(first_positions),
            address(block_tables),
            block_tables.shape[1],
            address(tail_tables),
            tail_tables.shape[1],
            num_seqs,
        ),
        (
            *kv_arguments(kv),
            address(tail.pool) + tail.layer_offset,
            tail.block_stride,
            tail.kv_stride,
            tail.head_stride,
        ),
    )
