# SPDX-License-Identifier: Apache-2.0
"""Operands of the kernel tests, and naive fp64 references that share no code with either backend."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from types import ModuleType

import pytest
import torch
from torch import Tensor

from ziggurat import kernels
from ziggurat.kernels import KVLayer
from ziggurat.kernels.ops import load_native
from ziggurat.programs.formats import FORMATS, PANEL_WIDTH

BACKENDS = ("native", "torch")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def native_library() -> ModuleType:
    """The library; skips where there is no compiler to build it with, and fails where there is one."""
    library = load_native()
    if library is None and not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        pytest.skip("no C++ compiler here: the native kernels are not built")
    assert library is not None, (
        "the native kernels are not built although there is a compiler: run `make env` or `make native`"
    )
    return library


def backend(name: str, num_threads: int | None = None) -> kernels.KernelOps:
    if name == "native":
        native_library()
    return kernels.select(name, num_threads=num_threads)


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def packed(ops: kernels.KernelOps, weight: Tensor) -> Tensor:
    """Panels of a matrix; the lanes past its last row hold NaN, which nobody may see."""
    num_panels = -(-weight.shape[0] // PANEL_WIDTH)
    panels = torch.full((num_panels, weight.shape[1], PANEL_WIDTH), torch.nan, dtype=weight.dtype)
    ops.pack_rows(weight, panels)
    return panels


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected).abs().max() / expected.abs().max().clamp_min(1e-30))


def product_error(actual: Tensor, expected: Tensor, magnitude: Tensor, num_terms: int) -> float:
    """Largest error of sums of products, as a share of what fp32 allows: num_terms * 2**-24 of the sum of absolute terms.

    The error of a sum is bounded by its terms, not by its value: terms that cancel leave a small value with the same error.
    Source: Higham, Accuracy and Stability of Numerical Algorithms, section 3.1.
    """
    allowed = num_terms * 2.0**-24 * magnitude.double()
    return float(((actual.double() - expected).abs() / allowed.clamp_min(1e-30)).max())


def reference_rms_norm(x: Tensor, weight: Tensor, eps: float, offset: float) -> Tensor:
    x = x.double()
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * (weight.double() + offset)


def reference_rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [T, heads, D]; cos and sin [T, rot / 2]."""
    half = cos.shape[1]
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    cos, sin = cos.double()[:, None], sin.double()[:, None]
    return torch.cat((a * cos - b * sin, b * cos + a * sin, rest), -1)


@dataclass(kw_only=True)
class Batch:
    """A ragged batch over a paged pool whose unused bytes are NaN.

    Attributes:
        keys, values: per sequence [length, Hkv, D], as stored.
    """

    qkv: Tensor
    query_starts: Tensor
    first_positions: Tensor
    block_tables: Tensor
    kv: KVLayer
    num_heads: int
    keys: list[Tensor]
    values: list[Tensor]

    def attend(self, ops: kernels.KernelOps, scale: float, window: int, softcap: float = 0.0) -> Tensor:
        out = torch.full((self.qkv.shape[0], self.num_heads * self.kv.head_dim), torch.nan)
        ops.paged_attention(
            self.qkv,
            out,
            query_starts=self.query_starts,
            first_positions=self.first_positions,
            block_tables=self.block_tables,
            kv=self.kv,
            num_heads=self.num_heads,
            scale=scale,
            window=window,
            softcap=softcap,
        )
        return out


def kv_layer(
    pool: Tensor, format_name: str, block_size: int, num_kv_heads: int, head_dim: int, layer: int, num_layers: int
) -> KVLayer:
    """[block][layer][key | value][head], the layout of a paged KV group."""
    return KVLayer.of_group(
        pool,
        FORMATS[format_name],
        block_size=block_size,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        place=layer,
        num_layers=num_layers,
    )


def store(block: Tensor, entries: Tensor) -> None:
    """Write keys and values [2, n, Hkv, D] into the first slots of a layer's block [2, Hkv, block_size * D in whatever order]: keys lie
    [D][slot], values [slot][D]."""
    _, num_tokens, num_heads, dim = entries.shape
    block[0].view(num_heads, dim, -1)[:, :, :num_tokens] = entries[0].permute(1, 2, 0)
    block[1].view(num_heads, -1, dim)[:, :num_tokens] = entries[1].transpose(0, 1)


def build_batch(
    seed: int,
    chunks: list[tuple[int, int]],
    *,
    format_name: str = "fp32",
    block_size: int = 16,
    num_heads: int = 4,
    num_kv_heads: int = 2,
    head_dim: int = 64,
    window: int = 0,
) -> Batch:
    """Sequences with (computed tokens, new tokens); blocks are dealt at random, those behind the window are -1 and hold NaN."""
    generator = torch.Generator().manual_seed(seed)
    dtype = DTYPES[format_name]
    lengths = [old + new for old, new in chunks]
    blocks = [-(-length // block_size) for length in lengths]
    num_blocks = sum(blocks) + 2
    shape = (num_blocks, 2, 2, num_kv_heads, block_size, head_dim)
    pool = torch.full(shape, torch.nan, dtype=dtype)
    order = torch.randperm(num_blocks, generator=generator).tolist()
    tables = torch.full((len(chunks), max(blocks) + 1), -1, dtype=torch.int32)
    keys, values = [], []
    for s, (old, _) in enumerate(chunks):
        mine, order = order[: blocks[s]], order[blocks[s] :]
        entries = torch.randn(2, lengths[s], num_kv_heads, head_dim, generator=generator).to(dtype)
        first_seen = max(0, old - window + 1) if window else 0
        for b in range(first_seen // block_size, blocks[s]):
            span = entries[:, b * block_size : (b + 1) * block_size]
            store(pool[mine[b], 1], span)
            tables[s, b] = mine[b]
        keys.append(entries[0])
        values.append(entries[1])
    starts = torch.tensor([0, *[new for _, new in chunks]]).cumsum(0).to(torch.int32)
    return Batch(
        qkv=torch.randn(int(starts[-1]), (num_heads + 2 * num_kv_heads) * head_dim, generator=generator),
        query_starts=starts,
        first_positions=torch.tensor([old for old, _ in chunks], dtype=torch.int32),
        block_tables=tables,
        kv=kv_layer(pool, format_name, block_size, num_kv_heads, head_dim, layer=1, num_layers=2),
        num_heads=num_heads,
        keys=keys,
        values=values,
    )


def reference_attention(batch: Batch, scale: float, window: int, softcap: float = 0.0) -> Tensor:
    heads, dim = batch.num_heads, batch.kv.head_dim
    group = heads // batch.kv.num_kv_heads
    rows = []
    for s, first in enumerate(batch.first_positions.tolist()):
        begin, end = batch.query_starts[s : s + 2].tolist()
        for offset, q in enumerate(batch.qkv[begin:end, : heads * dim].double()):
            position = first + offset
            seen = slice(max(0, position - window + 1) if window else 0, position + 1)
            for head in range(heads):
                k = batch.keys[s][seen, head // group].double()
                v = batch.values[s][seen, head // group].double()
                scores = k @ q[head * dim : (head + 1) * dim] * scale
                if softcap:
                    scores = (scores / softcap).tanh() * softcap
                rows.append(scores.softmax(0) @ v)
    return torch.stack(rows).view(-1, heads * dim)
