# SPDX-License-Identifier: Apache-2.0
"""Paged attention: against naive fp64 attention, and bit for bit over chunking, neighbours, block size and threads.

Unused slots of the pool hold NaN, so every test also proves that only visible entries are read.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.kernels.helpers import (
    BACKENDS,
    DTYPES,
    backend,
    build_batch,
    reference_attention,
    relative_error,
    store,
)
from ziggurat.errors import UnsupportedFeature

SCALE = 0.125
CHUNKS = st.lists(st.tuples(st.integers(0, 150), st.integers(1, 40)), min_size=1, max_size=4)
HEADS = st.sampled_from([(1, 1), (2, 1), (3, 1), (4, 2), (6, 2), (9, 3), (8, 1)])
WINDOWS = st.sampled_from([0, 0, 1, 5, 64, 100])
SOFTCAPS = st.sampled_from([0.0, 0.0, 0.5, 4.0, 50.0])


@pytest.mark.parametrize("name", BACKENDS)
@settings(max_examples=25)
@given(
    chunks=CHUNKS,
    heads=HEADS,
    window=WINDOWS,
    head_dim=st.sampled_from([8, 64, 80, 96, 128]),
    block_size=st.sampled_from([1, 3, 16, 32]),
    format_name=st.sampled_from(sorted(DTYPES)),
    softcap=SOFTCAPS,
)
def test_attention_matches_fp64(name, chunks, heads, window, head_dim, block_size, format_name, softcap):
    batch = build_batch(
        3,
        chunks,
        format_name=format_name,
        block_size=block_size,
        num_heads=heads[0],
        num_kv_heads=heads[1],
        head_dim=head_dim,
        window=window,
    )
    out = batch.attend(backend(name), SCALE, window, softcap)
    assert relative_error(out, reference_attention(batch, SCALE, window, softcap)) < 2e-6


@pytest.mark.parametrize("name", BACKENDS)
@settings(max_examples=20)
@given(
    data=st.data(),
    old=st.integers(0, 100),
    new=st.integers(2, 60),
    heads=HEADS,
    window=WINDOWS,
    format_name=st.sampled_from(sorted(DTYPES)),
    softcap=SOFTCAPS,
)
def test_chunking_changes_no_bit(name, data, old, new, heads, window, format_name, softcap):
    """One call over all rows, two chunks, and single decodes give the same bits."""
    ops = backend(name)
    batch = build_batch(
        5, [(old, new)], format_name=format_name, num_heads=heads[0], num_kv_heads=heads[1], window=window
    )
    whole = batch.attend(ops, SCALE, window, softcap)

    def piece(first: int, last: int) -> torch.Tensor:
        part = dataclasses.replace(
            batch,
            qkv=batch.qkv[first:last],
            query_starts=torch.tensor([0, last - first], dtype=torch.int32),
            first_positions=torch.tensor([old + first], dtype=torch.int32),
        )
        return part.attend(ops, SCALE, window, softcap)

    cut = data.draw(st.integers(1, new - 1))
    assert torch.equal(torch.cat((piece(0, cut), piece(cut, new))), whole)
    row = data.draw(st.integers(0, new - 1))
    assert torch.equal(piece(row, row + 1), whole[row : row + 1])


@pytest.mark.parametrize("name", BACKENDS)
@settings(max_examples=15)
@given(chunks=CHUNKS, heads=HEADS, window=WINDOWS)
def test_neighbours_change_no_bit(name, chunks, heads, window):
    ops = backend(name)
    batch = build_batch(9, chunks, num_heads=heads[0], num_kv_heads=heads[1], window=window)
    whole = batch.attend(ops, SCALE, window)
    for s in range(len(chunks)):
        begin, end = batch.query_starts[s : s + 2].tolist()
        alone = dataclasses.replace(
            batch,
            qkv=batch.qkv[begin:end],
            query_starts=torch.tensor([0, end - begin], dtype=torch.int32),
            first_positions=batch.first_positions[s : s + 1],
            block_tables=batch.block_tables[s : s + 1],
        )
        assert torch.equal(alone.attend(ops, SCALE, window), whole[begin:end])


@pytest.mark.parametrize("name", BACKENDS)
def test_block_size_changes_no_bit(name):
    outs = []
    for block_size in (1, 7, 16, 64):
        batch = build_batch(11, [(70, 30)], block_size=block_size)
        source = build_batch(11, [(70, 30)], block_size=16)
        # The same keys, values and queries in blocks of another size.
        for b in range(-(-100 // block_size)):
            span = slice(b * block_size, min(100, (b + 1) * block_size))
            entries = torch.stack((source.keys[0][span], source.values[0][span]))
            store(batch.kv.pool[batch.block_tables[0, b], 1], entries)
        outs.append(dataclasses.replace(batch, qkv=source.qkv).attend(backend(name), SCALE, 0))
    for out in outs[1:]:
        assert torch.equal(out, outs[0])


def test_attention_is_the_same_on_one_thread_and_on_three():
    batch = build_batch(2, [(300, 1), (0, 90), (64, 33)], format_name="bf16", num_heads=6, num_kv_heads=2)
    three = batch.attend(backend("native", num_threads=3), SCALE, 0)
    one = batch.attend(backend("native", num_threads=1), SCALE, 0)
    backend("native", num_threads=2)
    assert torch.equal(one, three)


def test_a_poisoned_token_is_seen_by_later_rows_only():
    batch = build_batch(4, [(20, 40), (0, 10)])
    ops = backend("native")
    clean = batch.attend(ops, SCALE, 0)
    poisoned = 35  # a position of the first sequence
    block = batch.kv.pool[batch.block_tables[0, poisoned // 16], 1]
    block[0].view(2, 64, 16)[:, :, poisoned % 16] = torch.nan
    block[1, :, poisoned % 16] = torch.nan
    out = batch.attend(ops, SCALE, 0)
    assert torch.equal(out[: poisoned - 20], clean[: poisoned - 20])
    assert out[poisoned - 20 : 40].isnan().all()
    assert torch.equal(out[40:], clean[40:])


@pytest.mark.parametrize("name", BACKENDS)
def test_huge_scores_do_not_overflow(name):
    batch = build_batch(6, [(40, 20)])
    batch.qkv *= 1000.0
    out = batch.attend(backend(name), SCALE, 0)
    assert relative_error(out, reference_attention(batch, SCALE, 0)) < 1e-3


@pytest.mark.parametrize("name", BACKENDS)
def test_a_soft_cap_bounds_huge_scores_without_overflow(name):
    batch = build_batch(6, [(40, 20)])
    batch.qkv *= 1e6
    capped = batch.attend(backend(name), SCALE, 0, 5.0)
    assert relative_error(capped, reference_attention(batch, SCALE, 0, 5.0)) < 1e-5
    # With a cap no key is ever worth more than e^10 of another, so the result is far from the uncapped one.
    assert relative_error(capped, reference_attention(batch, SCALE, 0)) > 0.1


def test_unsupported_head_size_is_named():
    batch = build_batch(1, [(0, 2)], head_dim=8)
    broken = dataclasses.replace(batch, kv=dataclasses.replace(batch.kv, head_dim=12))
    for name in BACKENDS:
        with pytest.raises(UnsupportedFeature, match="head size 12"):
            broken.attend(backend(name), SCALE, 0)
