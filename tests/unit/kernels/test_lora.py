# SPDX-License-Identifier: Apache-2.0
"""Low-rank updates of many adapters at once: against fp64, bit for bit whatever the neighbours, and refusals."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.unit.kernels.helpers import BACKENDS, DTYPES, backend, random, relative_error
from ziggurat.kernels.lora_entries import WHOLE_ROWS

CODES = {"fp32": 0, "bf16": 1, "fp16": 2}
SPANS = st.lists(
    st.tuples(st.integers(0, 6), st.integers(1, 37), st.sampled_from(sorted(DTYPES)), st.floats(-2, 2, width=32)),
    min_size=1,
    max_size=6,
)


def make(
    seed: int, spans: list[tuple[int, int, str, float]], k: int, n: int
) -> tuple[list[tuple[Tensor, Tensor]], Tensor, Tensor]:
    """A and B of every entry, and the arrays of the call; rows of the entries follow each other."""
    matrices, rows, first = [], [], 0
    for index, (count, rank, name, _) in enumerate(spans):
        a = random(seed + 2 * index, rank, k).to(DTYPES[name]).contiguous()
        b = random(seed + 2 * index + 1, rank, n).to(DTYPES[name]).contiguous()
        matrices.append((a, b))
        rows.append((first, count, a.data_ptr(), b.data_ptr(), rank, 8, n, CODES[name], *WHOLE_ROWS))
        first += count
    scales = torch.tensor([scale for *_, scale in spans], dtype=torch.float32)
    return matrices, torch.tensor(rows, dtype=torch.int64), scales


@pytest.mark.parametrize("name", BACKENDS)
@settings(max_examples=40)
@given(seed=st.integers(0, 2**20), spans=SPANS, k=st.sampled_from([8, 40, 64, 200]), n=st.sampled_from([8, 24, 32, 72]))
def test_products_match_fp64_and_nothing_else_is_touched(name, seed, spans, k, n):  # type: ignore[no-untyped-def]
    matrices, entries, scales = make(seed, spans, k, n)
    num_rows = sum(count for count, *_ in spans) + 2
    x, before = random(seed + 99, num_rows, k), random(seed + 98, num_rows, n + 16)
    out = before.clone()
    backend(name).lora(x, out, entries, scales)
    expected = before.double()
    for (first, count, *_), (a, b), scale in zip(entries.tolist(), matrices, scales.tolist(), strict=True):
        rows = slice(first, first + count)
        expected[rows, 8 : 8 + n] += scale * (x[rows].double() @ a.double().T @ b.double())
    assert relative_error(out, expected) < 2e-6
    assert torch.equal(out[:, :8], before[:, :8]) and torch.equal(out[:, 8 + n :], before[:, 8 + n :])
    assert torch.equal(out[-2:], before[-2:])


@pytest.mark.parametrize("name", BACKENDS)
def test_a_row_has_the_same_bits_alone_and_among_others(name):  # type: ignore[no-untyped-def]
    spans = [(9, 13, "bf16", 0.5), (1, 64, "fp32", 1.25), (17, 1, "fp16", -1.0)]
    matrices, entries, scales = make(5, spans, 96, 48)
    x, before = random(1, 27, 96), random(2, 27, 64)
    whole = before.clone()
    backend(name).lora(x, whole, entries, scales)
    for entry, scale in zip(entries, scales, strict=True):
        for row in range(int(entry[0]), int(entry[0] + entry[1])):
            alone = before[row : row + 1].clone()
            single = entry.clone()
            single[0], single[1] = 0, 1
            backend(name).lora(x[row : row + 1], alone, single[None], scale[None])
            assert torch.equal(alone[0], whole[row])
    assert matrices


def test_one_thread_and_three_give_the_same_bits():  # type: ignore[no-untyped-def]
    spans = [(40, 33, "bf16", 0.5), (25, 8, "bf16", 2.0)]
    matrices, entries, scales = make(5, spans, 64, 32)
    x, outs = random(1, 65, 64), []
    for num_threads in (1, 3, 2):
        out = torch.zeros(65, 48)
        backend("native", num_threads=num_threads).lora(x, out, entries, scales)
        outs.append(out)
    assert torch.equal(outs[0], outs[1]) and matrices


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize(
    ("column", "value", "words"),
    [(0, 5, "rows"), (1, 9, "rows"), (4, 600, "rank"), (4, 0, "rank"), (5, 40, "columns"), (6, 12, "multiples of 8")],
)
def test_what_does_not_fit_is_refused(name, column, value, words):  # type: ignore[no-untyped-def]
    _, entries, scales = make(1, [(4, 3, "fp32", 1.0)], 16, 16)
    entries[0, column] = value
    with pytest.raises(ValueError, match=words):
        backend(name).lora(torch.zeros(4, 16), torch.zeros(4, 32), entries, scales)
