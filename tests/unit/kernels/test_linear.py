# SPDX-License-Identifier: Apache-2.0
"""Linear, packing and embedding rows: against fp64, and row by row bit for bit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.kernels.helpers import BACKENDS, DTYPES, backend, packed, product_error, random, relative_error

SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 300), st.integers(1, 150))


def run(ops, x, panels, out_features, **more):
    out = torch.full((x.shape[0], out_features), torch.nan)
    ops.linear(x, panels, out, **more)
    return out


@pytest.mark.parametrize("name", BACKENDS)
@settings(max_examples=40)
@given(shape=SHAPES, dtype=st.sampled_from(sorted(DTYPES)), seed=st.integers(0, 1000))
def test_linear_matches_fp64(name, shape, dtype, seed):
    num_rows, k, n = shape
    ops = backend(name)
    x, weight, bias = random(seed, num_rows, k), random(seed + 1, n, k).to(DTYPES[dtype]), random(seed + 2, n)
    before = random(seed + 3, num_rows, n)
    panels = packed(ops, weight)
    expected = x.double() @ weight.double().T
    magnitude = x.double().abs() @ weight.double().abs().T
    assert product_error(run(ops, x, panels, n), expected, magnitude, k) < 1
    expected, magnitude = expected + bias.double(), magnitude + bias.double().abs()
    assert product_error(run(ops, x, panels, n, bias=bias), expected, magnitude, k + 1) < 1
    out = before.clone()
    ops.linear(x, panels, out, bias=bias, accumulate=True)
    assert product_error(out, expected + before.double(), magnitude + before.double().abs(), k + 2) < 1


@pytest.mark.parametrize("name", BACKENDS)
@settings(max_examples=25)
@given(data=st.data(), shape=SHAPES, dtype=st.sampled_from(sorted(DTYPES)))
def test_linear_rows_do_not_depend_on_the_batch(name, data, shape, dtype):
    num_rows, k, n = shape
    ops = backend(name)
    x = random(7, num_rows, k)
    panels = packed(ops, random(8, n, k).to(DTYPES[dtype]))
    whole = run(ops, x, panels, n)
    picked = data.draw(st.lists(st.integers(0, num_rows - 1), min_size=1, max_size=2 * num_rows))
    assert torch.equal(run(ops, x[picked], panels, n), whole[picked])
    cut = data.draw(st.integers(0, num_rows))
    assert torch.equal(torch.cat([run(ops, part, panels, n) for part in (x[:cut], x[cut:])]), whole)


@pytest.mark.parametrize("num_rows", [1, 2, 3, 4, 5, 6, 7, 13, 97])
def test_linear_is_the_same_on_one_thread_and_on_three(num_rows):
    panels = packed(backend("native"), random(1, 1000, 600).bfloat16())
    x = random(2, num_rows, 600)
    three = run(backend("native", num_threads=3), x, panels, 1000)
    one = run(backend("native", num_threads=1), x, panels, 1000)
    backend("native", num_threads=2)
    assert torch.equal(one, three)


def test_every_row_count_gives_the_bits_of_a_single_row():
    ops = backend("native")
    panels = packed(ops, random(1, 70, 129).bfloat16())
    x = random(2, 1, 129)
    single = run(ops, x, panels, 70)
    for num_rows in range(1, 30):
        assert torch.equal(run(ops, x.repeat(num_rows, 1), panels, 70), single.repeat(num_rows, 1)), num_rows


@pytest.mark.parametrize("name", BACKENDS)
def test_linear_respects_row_strides(name):
    ops = backend(name)
    wide_x, wide_out = random(1, 9, 100), torch.zeros(9, 200)
    panels = packed(ops, random(2, 33, 40))
    ops.linear(wide_x[:, 10:50], panels, wide_out[:, 5:38])
    assert torch.equal(wide_out[:, 5:38], run(ops, wide_x[:, 10:50].contiguous(), panels, 33))
    assert not wide_out[:, :5].any()
    assert not wide_out[:, 38:].any()


@pytest.mark.parametrize("name", BACKENDS)
def test_nan_and_infinity_stay_in_their_row(name):
    ops = backend(name)
    x = random(1, 8, 64)
    panels = packed(ops, random(2, 48, 64).bfloat16())
    clean = run(ops, x, panels, 48)
    x[3, 10], x[5, 0] = torch.nan, torch.inf
    out = run(ops, x, panels, 48)
    assert out[3].isnan().all()
    assert not out[5].isfinite().any()
    others = [0, 1, 2, 4, 6, 7]
    assert torch.equal(out[others], clean[others])


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_packing_fuses_matrices_and_unpacks_exactly(name, dtype):
    ops = backend(name)
    first, second = random(1, 21, 37).to(DTYPES[dtype]), random(2, 30, 37).to(DTYPES[dtype])
    panels = torch.zeros(4, 37, 16, dtype=DTYPES[dtype])
    ops.pack_rows(first, panels)
    ops.pack_rows(second, panels, first_row=21)
    for row in (0, 15, 16, 20, 21, 50):
        assert torch.equal(panels[row // 16, :, row % 16], torch.cat((first, second))[row])
    again = torch.zeros_like(second)
    ops.unpack_rows(panels, again, first_row=21)
    assert torch.equal(again, second)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_embedding_rows_are_exact(name, dtype):
    ops = backend(name)
    weight = random(1, 50, 24).to(DTYPES[dtype])
    ids = torch.tensor([0, 49, 7, 7, 16])
    out = torch.zeros(5, 24)
    ops.embed_rows(ids, packed(ops, weight), out, scale=2.0)
    assert torch.equal(out, weight[ids].float() * 2.0)


def test_backends_agree_within_rounding():
    x, weight = random(1, 19, 256), random(2, 100, 256).bfloat16()
    outs = [run(backend(name), x, packed(backend(name), weight), 100) for name in BACKENDS]
    assert relative_error(outs[0], outs[1].double()) < 1e-5


def test_wrong_operands_are_refused():
    ops = backend("native")
    panels = packed(ops, random(1, 20, 8))
    with pytest.raises(ValueError, match="out has 40 columns"):
        run(ops, random(2, 3, 8), panels, 40)
    with pytest.raises(ValueError, match="expected"):
        run(ops, random(2, 3, 9), panels, 20)
    with pytest.raises(ValueError, match="outside"):
        ops.embed_rows(torch.tensor([32]), panels, torch.zeros(1, 8))
    with pytest.raises(TypeError, match="does not convert"):
        ops.pack_rows(random(1, 4, 8).bfloat16(), panels)
    with pytest.raises(ValueError, match="do not fit"):
        ops.pack_rows(random(1, 4, 8), panels, first_row=30)
