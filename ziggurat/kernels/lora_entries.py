# SPDX-License-Identifier: Apache-2.0
"""The numbers that describe low-rank updates to a kernel (see `KernelOps.lora`)."""

from __future__ import annotations

from ziggurat.kernels.arrays import check
from ziggurat.kernels.ops import MAX_LORA_RANK, Array

WHOLE_ROWS = (0, 0, 1, 1)
"""The last four numbers of an entry whose matrices are not made of shards."""


def check_entries(x: Array, out: Array, entries: Array, scales: Array) -> None:
    """What both backends ask of the entries of `KernelOps.lora`.

    Raises:
        ValueError: rows, columns or ranks that the arrays do not have.
    """
    check(entries, "entries", "int64", (None, 12))
    check(scales, "scales", "float32", (entries.shape[0],))
    for first, count, _, _, rank, column, n, _, *_, a_shards, b_shards in entries.tolist():
        if x.shape[1] % 8 or n % 8 or not 0 < rank <= MAX_LORA_RANK:
            raise ValueError(
                f"lora: K {x.shape[1]} and n {n} must be multiples of 8, rank {rank} at most {MAX_LORA_RANK}"
            )
        if min(a_shards, b_shards) < 1 or x.shape[1] % (8 * a_shards) or n % (8 * b_shards):
            raise ValueError(
                f"lora: {a_shards} shards of K {x.shape[1]} and {b_shards} of n {n} must be multiples of 8"
            )
        if first < 0 or count < 0 or first + count > x.shape[0] or column < 0 or column + n > out.shape[1]:
            raise ValueError(f"lora: rows [{first}, {first + count}), columns [{column}, {column + n}) lie outside")
