# SPDX-License-Identifier: Apache-2.0
"""Keys and values in ggml's blocks: written within half a step, the same bytes from both backends, read as what they decode to."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.unit.kernels.helpers import BACKENDS, Batch, backend, build_batch, reference_attention, relative_error
from tests.unit.kernels.test_attention import CHUNKS, HEADS, SCALE, SOFTCAPS, WINDOWS
from ziggurat.errors import UnsupportedFeature
from ziggurat.kernels import KVLayer
from ziggurat.programs.formats import KV_FORMATS, FormatSpec
from ziggurat.quantization import ggml

QUANTIZED = ("q8_0", "q4_0")


def layer(spec: FormatSpec, num_blocks: int, block_size: int, num_kv_heads: int, head_dim: int) -> KVLayer:
    """The second of two layers, in a pool whose unused bytes decode to NaN."""
    layer_bytes = 2 * num_kv_heads * spec.num_bytes((block_size, head_dim))
    pool = torch.full((num_blocks * 2 * layer_bytes,), 0x7F, dtype=torch.uint8)  # fp16 0x7f7f is a NaN
    sizes = {"block_size": block_size, "num_kv_heads": num_kv_heads, "head_dim": head_dim}
    return KVLayer.of_group(pool, spec, **sizes, place=1, num_layers=2)


def write(name: str, kv: KVLayer, k: Tensor, v: Tensor, slots: Tensor, num_heads: int) -> None:
    """Through `qkv_post` with rotations by nothing."""
    num_rows = k.shape[0]
    qkv = torch.cat((torch.zeros(num_rows, num_heads * kv.head_dim), k.flatten(1), v.flatten(1)), 1)
    table = torch.zeros(1, 4)  # only the first eight elements meet each other
    positions = torch.zeros(num_rows, dtype=torch.int64)
    backend(name).qkv_post(
        qkv, positions=positions, slot_mapping=slots, cos=table + 1, sin=table, kv=kv, num_heads=num_heads
    )


def read(kv: KVLayer, slots: Tensor) -> Tensor:
    """[slots, 2, Hkv, D] in fp32, decoded by the codec of files, which shares no code with the kernels."""
    width = kv.format.num_bytes((kv.head_dim,))
    rows = torch.stack(
        [
            kv.pool[start : start + width]
            for slot in slots.tolist()
            for part in range(2)
            for head in range(kv.num_kv_heads)
            for start in [
                slot // kv.block_size * kv.block_stride
                + kv.layer_offset
                + part * kv.kv_stride
                + head * kv.head_stride
                + slot % kv.block_size * width
            ]
        ]
    )
    out = np.empty((len(rows), kv.head_dim), np.float32)
    ggml.decode(kv.format, rows.numpy(), out)
    return torch.from_numpy(out).view(len(slots), 2, kv.num_kv_heads, kv.head_dim)


@pytest.mark.parametrize("format_name", QUANTIZED)
@settings(max_examples=30)
@given(
    seed=st.integers(0, 2**32 - 1),
    scale=st.sampled_from([1e-30, 1e-3, 1.0, 300.0]),
    head_dim=st.sampled_from([32, 64, 96, 256]),
    block_size=st.sampled_from([1, 3, 16]),
)
def test_what_is_written_is_near_and_the_same_from_both_backends(
    format_name: str, seed: int, scale: float, head_dim: int, block_size: int
) -> None:
    noise = torch.Generator().manual_seed(seed)
    k, v = (torch.randn(5, 2, head_dim, generator=noise) * scale for _ in range(2))
    k[1, 0, :32] = 0.0
    slots = torch.tensor([7, 2, -1, 0, 11])
    layers = {name: layer(KV_FORMATS[format_name], 12, block_size, 2, head_dim) for name in BACKENDS}
    for name, kv in layers.items():
        write(name, kv, k, v, slots, num_heads=4)
    assert torch.equal(layers["native"].pool, layers["torch"].pool)
    written = slots >= 0
    values = torch.stack((k, v), 1)[written]
    groups = values.unflatten(-1, (-1, 32))
    peak = groups.abs().amax(-1, keepdim=True)
    # Half a step, a whole one on the open side of the 4-bit grid, the rounding of the scale to fp16, and its smallest number.
    step = peak / (127 if format_name == "q8_0" else 8)
    limit = (0.51 if format_name == "q8_0" else 1.02) * step + peak * 2**-10 + 127 * 2.0**-24
    error = (read(layers["native"], slots[written]) - values).unflatten(-1, (-1, 32)).abs()
    assert (error <= limit).all()
    # The slot that nothing was written to is as it was.
    assert (read(layers["native"], torch.tensor([5])).isnan()).all()


def quantized(batch: Batch, format_name: str) -> Batch:
    """The same sequences with keys and values in blocks; ``keys`` and ``values`` become what those decode to."""
    old = batch.kv
    kv = layer(KV_FORMATS[format_name], old.pool.shape[0], old.block_size, old.num_kv_heads, old.head_dim)
    keys, values = [], []
    for s, (k, v) in enumerate(zip(batch.keys, batch.values, strict=True)):
        where = torch.arange(len(k))
        blocks = batch.block_tables[s][where // old.block_size].long()
        slots = torch.where(blocks < 0, -1, blocks * old.block_size + where % old.block_size)
        write("native", kv, k, v, slots, batch.num_heads)
        seen = slots >= 0
        decoded = torch.full((len(k), 2, *k.shape[1:]), torch.nan)
        decoded[seen] = read(kv, slots[seen])
        keys.append(decoded[:, 0])
        values.append(decoded[:, 1])
    return dataclasses.replace(batch, kv=kv, keys=keys, values=values)


@pytest.mark.parametrize("name", BACKENDS)
@settings(max_examples=20)
@given(
    chunks=CHUNKS,
    heads=HEADS,
    window=WINDOWS,
    head_dim=st.sampled_from([32, 64, 96]),
    block_size=st.sampled_from([3, 16]),
    format_name=st.sampled_from(QUANTIZED),
    softcap=SOFTCAPS,
)
def test_attention_is_that_of_the_decoded_keys_and_values(  # type: ignore[no-untyped-def]
    name, chunks, heads, window, head_dim, block_size, format_name, softcap
) -> None:
    batch = build_batch(
        3, chunks, block_size=block_size, num_heads=heads[0], num_kv_heads=heads[1], head_dim=head_dim, window=window
    )
    batch = quantized(batch, format_name)
    out = batch.attend(backend(name), SCALE, window, softcap)
    assert relative_error(out, reference_attention(batch, SCALE, window, softcap)) < 3e-6


@pytest.mark.parametrize("name", BACKENDS)
@settings(max_examples=15)
@given(
    data=st.data(), old=st.integers(0, 100), new=st.integers(2, 60), heads=HEADS, format_name=st.sampled_from(QUANTIZED)
)
def test_chunking_changes_no_bit(name, data, old, new, heads, format_name) -> None:  # type: ignore[no-untyped-def]
    ops = backend(name)
    batch = quantized(build_batch(5, [(old, new)], num_heads=heads[0], num_kv_heads=heads[1]), format_name)
    whole = batch.attend(ops, SCALE, 0)
    cut = data.draw(st.integers(1, new - 1))
    parts = [
        dataclasses.replace(
            batch,
            qkv=batch.qkv[first:last],
            query_starts=torch.tensor([0, last - first], dtype=torch.int32),
            first_positions=torch.tensor([old + first], dtype=torch.int32),
        ).attend(ops, SCALE, 0)
        for first, last in ((0, cut), (cut, new))
    ]
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("format_name", QUANTIZED)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_number_that_is_none_poisons_its_block_and_nothing_else(name: str, format_name: str, bad: float) -> None:
    kv = layer(KV_FORMATS[format_name], 2, 4, 1, 64)
    k = torch.ones(2, 1, 64)
    k[1, 0, 3] = bad
    write(name, kv, k, torch.ones(2, 1, 64), torch.tensor([0, 1]), num_heads=1)
    found = read(kv, torch.tensor([0, 1]))
    assert found[1, 0, 0, :32].isnan().all()
    assert found[1, 0, 0, 32:].isfinite().all() and found[0].isfinite().all() and found[1, 1].isfinite().all()


def test_heads_that_are_no_whole_blocks_are_refused_by_name() -> None:
    kv = layer(KV_FORMATS["q8_0"], 2, 4, 1, 64)
    for name in BACKENDS:
        with pytest.raises(UnsupportedFeature, match="head size 40 is no multiple of 32"):
            write(
                name,
                dataclasses.replace(kv, head_dim=40),
                torch.ones(1, 1, 40),
                torch.ones(1, 1, 40),
                torch.tensor([0]),
                1,
            )
