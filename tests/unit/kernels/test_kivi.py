# SPDX-License-Identifier: Apache-2.0
"""KIVI's packed keys and values: the same bytes from both backends and the codec in numpy, attention that depends on positions alone."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.unit.kernels.helpers import BACKENDS, backend, native_library, relative_error
from ziggurat.errors import UnsupportedFeature
from ziggurat.kernels import KVLayer
from ziggurat.kernels.twins.kivi import decode_records, encode_records
from ziggurat.programs.formats import KV_FORMATS
from ziggurat.quantization import kivi

FORMATS = ("kivi4", "kivi2")
HEADS, DIM, TOKENS = 2, 64, 32


def layer(name: str, num_blocks: int, dim: int = DIM) -> KVLayer:
    """The second of two layers, and its tail; bytes that nobody wrote are NaN."""

    def make(spec: str) -> KVLayer:
        fmt = KV_FORMATS[spec]
        layer_bytes = 2 * HEADS * fmt.num_bytes((TOKENS, dim))
        pool = torch.full((num_blocks * 2 * layer_bytes,), 0x7F, dtype=torch.uint8)
        return KVLayer.of_group(pool, fmt, block_size=TOKENS, num_kv_heads=HEADS, head_dim=dim, place=1, num_layers=2)

    tail = make("fp32")
    tail.pool.view(torch.float32).fill_(torch.nan)
    return dataclasses.replace(make(name), tail=tail)


def run(name: str, kv: KVLayer, k: Tensor, v: Tensor, q: Tensor, chunks: list[int], seed: int) -> Tensor:
    """One sequence in chunks through write, pack and attention; blocks lie in random order, apart for packed ones and tails."""
    ops, num_tokens = backend(name), len(k)
    num_blocks = -(-num_tokens // TOKENS)
    order = torch.Generator().manual_seed(seed)
    tables = (
        torch.randperm(num_blocks, generator=order).int()[None],
        torch.randperm(num_blocks, generator=order).int()[None],
    )
    out, first = torch.empty(num_tokens, q.shape[1] * kv.head_dim), 0
    assert kv.tail is not None
    for count in [*chunks, num_tokens]:
        end = min(num_tokens, first + count)
        if end == first:
            break
        qkv = torch.cat([part[first:end].flatten(1) for part in (q, k, v)], 1).contiguous()
        where = torch.arange(first, end)
        slots = tables[1][0][where // TOKENS].long() * TOKENS + where % TOKENS
        ones, nothing = torch.ones(num_tokens, 4), torch.zeros(num_tokens, 4)
        ops.qkv_post(qkv, positions=where, slot_mapping=slots, cos=ones, sin=nothing, kv=kv.tail, num_heads=q.shape[1])
        arrays = {
            "query_starts": torch.tensor([0, end - first], dtype=torch.int32),
            "first_positions": torch.tensor([first], dtype=torch.int32),
            "block_tables": tables[0],
            "tail_tables": tables[1],
        }
        ops.pack_kv(kv, **arrays)
        ops.paged_attention(qkv, out[first:end], kv=kv, num_heads=q.shape[1], scale=0.2, **arrays)
        first = end
    return out


def expected(k: Tensor, v: Tensor, q: Tensor, bits: int) -> Tensor:
    """fp64 attention over what every position should see."""
    num_tokens, heads = q.shape[:2]
    out = torch.empty(num_tokens, heads, q.shape[2], dtype=torch.float64)
    for position in range(num_tokens):
        own = position // TOKENS * TOKENS
        keys, values = k[: position + 1].double().clone(), v[: position + 1].double().clone()
        if own:
            along = k[:own].unflatten(0, (-1, TOKENS)).permute(0, 2, 3, 1).contiguous().numpy()
            keys[:own] = (
                torch.from_numpy(kivi.quantize(along, bits).values()).permute(0, 3, 1, 2).flatten(0, 1).double()
            )
            values[:own] = torch.from_numpy(kivi.quantize(v[:own].numpy(), bits).values()).double()
        for head in range(heads):
            kv_head = head // (heads // k.shape[1])
            weights = torch.softmax(0.2 * (keys[:, kv_head] @ q[position, head].double()), 0)
            out[position, head] = weights @ values[:, kv_head]
    return out.flatten(1)


@pytest.mark.parametrize("format_name", FORMATS)
@settings(max_examples=12)
@given(seed=st.integers(0, 2**20), num_tokens=st.integers(1, 140), data=st.data())
def test_attention_sees_packed_blocks_and_its_own_whatever_the_chunks(
    format_name: str, seed: int, num_tokens: int, data: st.DataObject
) -> None:
    noise = torch.Generator().manual_seed(seed)
    k, v = (torch.randn(num_tokens, HEADS, DIM, generator=noise) * scale for scale in (3.0, 1.0))
    k[:, :, 3] += 40.0  # a channel far from the others
    q = torch.randn(num_tokens, 2 * HEADS, DIM, generator=noise)
    chunks = data.draw(st.lists(st.sampled_from([1, 7, 31, 32, 33, 64]), max_size=6))
    want, pools = expected(k, v, q, kivi.BITS[KV_FORMATS[format_name]]), []
    for name in BACKENDS:
        whole, parts = (layer(format_name, 8) for _ in range(2))
        out = run(name, whole, k, v, q, [num_tokens], seed)
        assert relative_error(out, want) < 2e-5
        assert torch.equal(out, run(name, parts, k, v, q, chunks, seed))
        assert torch.equal(whole.pool, parts.pool)
        pools.append(whole.pool)
    assert torch.equal(*pools), "the two backends pack other bytes"


@given(
    seed=st.integers(0, 2**20),
    bits=st.sampled_from([2, 4]),
    size=st.sampled_from([1e-30, 1e-6, 1.0, 1e4, 1e6]),
    shift=st.sampled_from([0.0, 1.0, -1000.0, 7e4]),
)
def test_codec_twin_and_bound(seed: int, bits: int, size: float, shift: float) -> None:
    values = torch.randn(3, 64, generator=torch.Generator().manual_seed(seed)) * size + shift
    groups = kivi.quantize(values.numpy(), bits)
    records = encode_records(values.unflatten(1, (2, 32)), bits)
    assert records.shape == (3, 2, 4 + 4 * bits)
    decoded = decode_records(records, bits).flatten(1)
    assert torch.equal(decoded, torch.from_numpy(groups.values()))
    step = torch.from_numpy(groups.scale.astype(np.float64))
    error = (decoded.double() - values.double()).abs().unflatten(1, (2, 32))
    inside = values.abs().amax() < 65504
    if inside:
        assert (error <= step / 2 * (1 + 1e-3) + values.abs().max().double() * 2**-22).all()


@pytest.mark.parametrize("bits", [2, 4])
def test_groups_that_are_flat_or_no_numbers(bits: int) -> None:
    rows = torch.zeros(4, 32)
    rows[1] = 2.5
    rows[2, 5], rows[3, 0] = torch.nan, -torch.inf
    decoded = decode_records(encode_records(rows, bits), bits)
    assert torch.equal(decoded[:2], rows[:2]) and decoded[2:].isnan().all()
    assert np.isnan(kivi.quantize(rows.numpy(), bits).values()[2:]).all()


@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
@pytest.mark.parametrize("format_name", FORMATS)
def test_every_instruction_set_packs_the_same_bytes(isa: str, format_name: str) -> None:
    library = native_library()
    if isa not in library.supported_isas():
        pytest.skip(f"this processor or build has no {isa}")
    k, v, q = (torch.randn(100, heads, DIM, generator=torch.Generator().manual_seed(heads)) for heads in (2, 2, 4))
    kv, before = layer(format_name, 8), library.isa()
    assert library.select_isa(isa)
    try:
        out = run("native", kv, k, v, q, [40], 3)
    finally:
        assert library.select_isa(before)
    other = layer(format_name, 8)
    assert relative_error(out, expected(k, v, q, kivi.BITS[KV_FORMATS[format_name]])) < 2e-5
    run("torch", other, k, v, q, [40], 3)
    assert torch.equal(kv.pool, other.pool)


@pytest.mark.parametrize("name", BACKENDS)
def test_a_value_that_is_no_number_stays_within_its_head_and_sequence(name: str) -> None:
    k, v = torch.randn(70, HEADS, DIM), torch.randn(70, HEADS, DIM)
    q = torch.randn(70, 2 * HEADS, DIM)
    k[40, 0, 7] = torch.nan
    out = run(name, layer("kivi4", 8), k, v, q, [33], 1).unflatten(1, (2 * HEADS, DIM))
    assert out[:40].isfinite().all() and out[:, 2:].isfinite().all() and out[64:, 0].isnan().all()


@pytest.mark.parametrize("name", BACKENDS)
def test_layouts_that_are_not_packed_are_refused(name: str) -> None:
    kv, nothing = layer("kivi2", 2), torch.zeros(1, 2, dtype=torch.int32)
    arrays = {
        "query_starts": torch.tensor([0, 1], dtype=torch.int32),
        "first_positions": torch.zeros(1, dtype=torch.int32),
        "block_tables": nothing,
    }
    rows = torch.zeros(1, 4 * DIM)
    with pytest.raises(UnsupportedFeature, match="a window is not served"):
        backend(name).paged_attention(
            rows, rows.clone(), kv=kv, num_heads=4, scale=1.0, window=8, tail_tables=nothing, **arrays
        )
    with pytest.raises(ValueError, match="are not packed"):
        backend(name).pack_kv(dataclasses.replace(kv, block_size=16), tail_tables=nothing, **arrays)
