# SPDX-License-Identifier: Apache-2.0
"""Decode attention over keys and values in any KV format, beside torch's over plain ones of the same length."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ziggurat.programs.formats import FP32, KV_FORMATS

if TYPE_CHECKING:
    from ziggurat.kernels import KVLayer

BLOCK_TOKENS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionShape:
    """A decode step's attention in one layer: ``num_seqs`` sequences of ``num_tokens`` each."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    num_seqs: int
    num_tokens: int

    @property
    def values(self) -> int:
        """Numbers that are read, keys and values."""
        return 2 * self.num_seqs * self.num_tokens * self.num_kv_heads * self.head_dim


class DecodeAttention:
    """One decode step's attention of a layer, ready to be called. Pools hold random bytes that decode to numbers: speed alone counts.

    Args:
        format_name: of `KV_FORMATS`.
    """

    def __init__(self, shape: AttentionShape, format_name: str, *, num_threads: int = 2) -> None:
        import torch

        from ziggurat import kernels

        self._ops, self._shape = kernels.select("auto", num_threads=num_threads), shape
        blocks = shape.num_seqs * (-(-shape.num_tokens // BLOCK_TOKENS))
        self.kv = _layer(shape, format_name, blocks)
        noise = torch.Generator().manual_seed(3)
        order = torch.randperm(blocks, generator=noise).int().view(shape.num_seqs, -1)
        self._qkv = torch.randn(
            shape.num_seqs, (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim, generator=noise
        )
        self._out = torch.empty(shape.num_seqs, shape.num_heads * shape.head_dim)
        self._arrays: dict[str, Any] = {
            "query_starts": torch.arange(shape.num_seqs + 1, dtype=torch.int32),
            "first_positions": torch.full((shape.num_seqs,), shape.num_tokens - 1, dtype=torch.int32),
            "block_tables": order,
        }
        if self.kv.tail is not None:
            tails = torch.zeros_like(order)
            tails[:, -1] = torch.arange(shape.num_seqs)
            self._arrays["tail_tables"] = tails

    def __call__(self) -> None:
        """One step."""
        scale = self._shape.head_dim**-0.5
        self._ops.paged_attention(
            self._qkv, self._out, kv=self.kv, num_heads=self._shape.num_heads, scale=scale, **self._arrays
        )


def torch_attention(shape: AttentionShape, *, num_threads: int = 2) -> Callable[[], Any]:
    """The same by `scaled_dot_product_attention` over dense fp32 tensors."""
    import torch
    import torch.nn.functional as F

    torch.set_num_threads(num_threads)
    size = (shape.num_seqs, shape.num_kv_heads, shape.num_tokens, shape.head_dim)
    keys, values = torch.full(size, 0.01), torch.full(size, 0.02)
    query = torch.randn(shape.num_seqs, shape.num_heads, 1, shape.head_dim)
    return lambda: F.scaled_dot_product_attention(query, keys, values, enable_gqa=True)


def interleaved_seconds(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each, taken in turn, after one call to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(found) for name, found in seconds.items()}


def _layer(shape: AttentionShape, format_name: str, num_blocks: int) -> KVLayer:
    import torch

    from ziggurat.kernels import KVLayer

    def make(name: str, blocks: int) -> KVLayer:
        spec = KV_FORMATS[name]
        block_bytes = 2 * shape.num_kv_heads * spec.num_bytes((BLOCK_TOKENS, shape.head_dim))
        return KVLayer.of_group(
            torch.full(
                (blocks * block_bytes,), 0x11, dtype=torch.uint8
            ),  # 0x11 everywhere is a small number in every format
            spec,
            block_size=BLOCK_TOKENS,
            num_kv_heads=shape.num_kv_heads,
            head_dim=shape.head_dim,
        )

    made = make(format_name, num_blocks)
    return replace(made, tail=make(FP32.name, shape.num_seqs)) if made.format.block_tokens else made
