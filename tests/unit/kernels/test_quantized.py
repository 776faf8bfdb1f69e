# SPDX-License-Identifier: Apache-2.0
"""Linears on quantized panels: against integer arithmetic in numpy, against the product that was meant, and row by row bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.unit.kernels.helpers import BACKENDS, backend, native_library, random, relative_error
from ziggurat.kernels import KernelOps
from ziggurat.programs.formats import COMPUTED_BLOCKS, PANEL_WIDTH, Q4_0, Q8_0, FormatSpec, scratch_width
from ziggurat.quantization import ggml

FORMATS = tuple(COMPUTED_BLOCKS)
ISAS = ("avx512vnni", "avx512", "avx2", "portable")
SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 9), st.integers(1, 150))  # rows, groups, outputs


def blocks_of(spec: FormatSpec, weight: Tensor) -> Tensor:
    return torch.from_numpy(ggml.encode(spec, weight.numpy()))


def panels_of(ops: KernelOps, spec: FormatSpec, blocks: Tensor) -> Tensor:
    """Panels of rows of blocks; the lanes past the last row are 255, a NaN as a scale, which nobody may see."""
    block_bytes = spec.num_bytes((spec.block_values,))
    shape = -(-len(blocks) // PANEL_WIDTH), blocks.shape[1] // block_bytes, PANEL_WIDTH * block_bytes
    panels = torch.full(shape, 255, dtype=torch.uint8)
    ops.pack_rows(blocks, panels)
    return panels


def run(ops: KernelOps, x: Tensor, panels: Tensor, out_features: int, **more) -> Tensor:
    out = torch.full((x.shape[0], out_features), torch.nan)
    ops.linear(x, panels, out, scratch=torch.full((x.shape[0], scratch_width(x.shape[1])), torch.nan), **more)
    return out


def reference(x: Tensor, spec: FormatSpec, blocks: Tensor) -> tuple[Tensor, Tensor]:
    """(product, sum of the groups' sizes) in fp64: x rounded to int8 in groups of 32, weights as the format decodes them."""
    weight = np.empty((len(blocks), x.shape[1]), np.float32)
    ggml.decode(spec, blocks.numpy(), weight)
    groups = x.numpy().reshape(len(x), -1, 32)
    peak = np.abs(groups).max(axis=2, keepdims=True)
    integers = np.rint(groups * (np.float32(127) / np.where(peak > 0, peak, np.float32(1))))
    rounded = integers.astype(np.float64) * (peak.astype(np.float64) / 127)
    parts = np.einsum("tgk,ngk->tgn", rounded, weight.reshape(len(weight), -1, 32).astype(np.float64))
    return torch.from_numpy(parts.sum(1)), torch.from_numpy(np.abs(parts).sum(1))


@pytest.mark.parametrize("name", BACKENDS)
@settings(max_examples=40, deadline=None)
@given(shape=SHAPES, spec=st.sampled_from([Q8_0, Q4_0]), seed=st.integers(0, 1000))
def test_linear_is_the_product_of_what_was_rounded(name, shape, spec, seed):
    num_rows, num_groups, n = shape
    ops = backend(name)
    x, bias, before = random(seed, num_rows, 32 * num_groups), random(seed + 1, n), random(seed + 2, num_rows, n)
    blocks = blocks_of(spec, random(seed + 3, n, 32 * num_groups))
    panels = panels_of(ops, spec, blocks)
    expected, size = reference(x, spec, blocks)
    # Sums of groups are exact; per group one product of scales, one multiplication and one addition are rounded.
    allowed = (num_groups + 4) * 2.0**-24 * size + 1e-12  # the reference rounds, too
    assert ((run(ops, x, panels, n).double() - expected).abs() <= allowed).all()
    out = before.clone()
    ops.linear(x, panels, out, bias=bias, accumulate=True, scratch=torch.empty(num_rows, scratch_width(x.shape[1])))
    allowed = allowed + 3 * 2.0**-24 * (size + bias.double().abs() + before.double().abs())
    assert ((out.double() - expected - bias.double() - before.double()).abs() <= allowed).all()


@pytest.mark.parametrize("name", BACKENDS)
@settings(max_examples=25, deadline=None)
@given(data=st.data(), shape=SHAPES, spec=st.sampled_from([Q8_0, Q4_0]))
def test_rows_do_not_depend_on_the_batch(name, data, shape, spec):
    num_rows, num_groups, n = shape
    ops = backend(name)
    x = random(7, num_rows, 32 * num_groups)
    panels = panels_of(ops, spec, blocks_of(spec, random(8, n, 32 * num_groups)))
    whole = run(ops, x, panels, n)
    picked = data.draw(st.lists(st.integers(0, num_rows - 1), min_size=1, max_size=2 * num_rows))
    assert torch.equal(run(ops, x[picked], panels, n), whole[picked])
    cut = data.draw(st.integers(0, num_rows))
    assert torch.equal(torch.cat([run(ops, part, panels, n) for part in (x[:cut], x[cut:])]), whole)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("num_rows", [1, 3, 13, 97, 200])
def test_threads_change_nothing(name, num_rows):
    spec = COMPUTED_BLOCKS[name]
    panels = panels_of(backend("native"), spec, blocks_of(spec, random(1, 1000, 608)))
    x = random(2, num_rows, 608)
    three = run(backend("native", num_threads=3), x, panels, 1000)
    one = run(backend("native", num_threads=1), x, panels, 1000)
    backend("native", num_threads=2)
    assert torch.equal(one, three)


@pytest.fixture(params=ISAS)
def one_isa(request):
    library = native_library()
    if request.param not in library.supported_isas():
        pytest.skip(f"this processor or build has no {request.param}")
    before = library.isa()
    assert library.select_isa(request.param)
    yield backend("native")
    assert library.select_isa(before)


@pytest.mark.parametrize("name", FORMATS)
def test_every_instruction_set_has_the_same_integers(one_isa, name):
    """The largest products: every byte of weights there is, -128 too, times activations of 127 in every sign."""
    spec, generator = COMPUTED_BLOCKS[name], torch.Generator().manual_seed(3)
    blocks = torch.randint(0, 256, (70, 3 * spec.num_bytes((32,))), generator=generator, dtype=torch.uint8)
    by_block = blocks.view(70, 3, -1)
    by_block[:, :, :2] = torch.tensor([1.0], dtype=torch.float16).view(torch.uint8)
    by_block[0, :, 2:], by_block[1, :, 2:], by_block[2, :, 2:] = 0x80, 0x7F, 0xFF
    x = torch.randint(0, 2, (27, 96), generator=generator) * 254.0 - 127.0
    x[0], x[1] = 127.0, -127.0
    expected, _ = reference(x, spec, blocks)
    panels = panels_of(one_isa, spec, blocks)
    out = run(one_isa, x, panels, 70)
    assert torch.equal(out.double(), expected)
    for row in range(27):
        assert torch.equal(run(one_isa, x[row : row + 1], panels, 70), out[row : row + 1])
    assert torch.equal(run(backend("torch"), x, panels, 70), out)


@pytest.mark.parametrize("name", FORMATS)
def test_wider_registers_give_the_same_bits(name):
    library, spec = native_library(), COMPUTED_BLOCKS[name]
    isas = [isa for isa in ISAS[:3] if isa in library.supported_isas()]
    if len(isas) < 2:
        pytest.skip("this processor or build has one of them at most")
    before, ops = library.isa(), backend("native")
    x, panels = random(1, 40, 320), panels_of(ops, spec, blocks_of(spec, random(2, 150, 320)))
    outs = []
    try:
        for isa in isas:
            assert library.select_isa(isa)
            outs.append(run(ops, x, panels, 150))
    finally:
        library.select_isa(before)
    assert all(torch.equal(out, outs[0]) for out in outs)


def test_backends_agree_within_rounding():
    x, weight = random(1, 19, 256), random(2, 100, 256)
    for spec in (Q8_0, Q4_0):
        outs = [
            run(backend(name), x, panels_of(backend(name), spec, blocks_of(spec, weight)), 100) for name in BACKENDS
        ]
        assert relative_error(outs[0], outs[1].double()) < 1e-6


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize(("spec", "weight_step"), [(Q8_0, 1 / 127), (Q4_0, 1 / 8)])
def test_the_product_is_close_to_the_one_in_full_precision(name, spec, weight_step):
    """Every value is off by half a step at most (Q4_0: a whole one), a step being a share of the largest of its group."""
    ops = backend(name)
    x, weight = random(1, 30, 512), random(2, 90, 512)
    peaks = [part.double().unflatten(1, (-1, 32)).abs().amax(2).repeat_interleave(32, 1) for part in (x, weight)]
    x_error = peaks[0] * 0.5 / 127
    weight_error = peaks[1] * weight_step * (0.5 if spec == Q8_0 else 1.0) + peaks[1] * 2.0**-11
    worst = x_error @ weight.double().abs().T + (x.double().abs() + x_error) @ weight_error.T
    out = run(ops, x, panels_of(ops, spec, blocks_of(spec, weight)), 90).double()
    exact = x.double() @ weight.double().T
    assert ((out - exact).abs() <= worst * (1 + 1e-5)).all()
    # Errors of both signs cancel: in the mean the product is far better than that bound.
    mean_error = float((out - exact).square().mean().sqrt() / exact.square().mean().sqrt())
    assert mean_error < (0.012 if spec == Q8_0 else 0.12)


@pytest.mark.parametrize("spec", [Q8_0, Q4_0], ids=lambda spec: spec.name)
@pytest.mark.parametrize("name", [*BACKENDS, *ISAS])
def test_hostile_activations_stay_in_their_row(name, spec):
    library = native_library() if name in ISAS else None
    if library is not None and name not in library.supported_isas():
        pytest.skip(f"this processor or build has no {name}")
    before = library.isa() if library is not None else ""
    ops = backend("native" if library is not None else name)
    x = random(1, 9, 128)
    blocks = blocks_of(spec, random(2, 48, 128))
    panels = panels_of(ops, spec, blocks)
    try:
        if library is not None:
            assert library.select_isa(name)
        clean = run(ops, x, panels, 48)
        x[1, 40], x[3, 10], x[5, 0] = -torch.inf, torch.nan, torch.inf
        x[6] = 0.0
        x[7], x[7, 32:64] = 1e-41, 1e-38
        x[8, 64:] = 0.25
        out = run(ops, x, panels, 48)
    finally:
        if library is not None:
            library.select_isa(before)
    assert out[[1, 3, 5]].isnan().all()
    assert not out[[6, 7]].any()
    assert torch.equal(out[[0, 2, 4]], clean[[0, 2, 4]])
    expected, size = reference(x[8:], spec, blocks)
    assert ((out[8:].double() - expected).abs() <= 8 * 2.0**-24 * size).all()


@pytest.mark.parametrize("name", BACKENDS)
def test_a_weight_scale_that_is_not_finite_spoils_its_output_only(name):
    ops, blocks = backend(name), blocks_of(Q8_0, random(2, 48, 64))
    x = random(1, 5, 64)
    clean = run(ops, x, panels_of(ops, Q8_0, blocks), 48)
    blocks[7, :2] = 255
    out = run(ops, x, panels_of(ops, Q8_0, blocks), 48)
    assert out[:, 7].isnan().all()
    others = [n for n in range(48) if n != 7]
    assert torch.equal(out[:, others], clean[:, others])


@pytest.mark.parametrize("name", BACKENDS)
@settings(max_examples=20, deadline=None)
@given(spec=st.sampled_from([Q8_0, Q4_0]), first=st.integers(1, 40), second=st.integers(1, 40), seed=st.integers(0, 99))
def test_packing_fuses_matrices_and_unpacks_exactly(name, spec, first, second, seed):
    """Any bytes: packing moves them and looks at none."""
    ops, generator = backend(name), torch.Generator().manual_seed(seed)
    rows = torch.randint(0, 256, (first + second, 3 * spec.num_bytes((32,))), generator=generator, dtype=torch.uint8)
    panels = panels_of(ops, spec, rows[:first])
    whole = torch.zeros(-(-(first + second) // 16), *panels.shape[1:], dtype=torch.uint8)
    ops.pack_rows(rows[:first], whole)
    ops.pack_rows(rows[first:].contiguous(), whole, first_row=first)
    again = torch.zeros_like(rows[first:])
    ops.unpack_rows(whole, again, first_row=first)
    assert torch.equal(again, rows[first:])
    other = torch.zeros_like(whole)
    backend(next(each for each in BACKENDS if each != name)).pack_rows(rows, other)
    assert torch.equal(other, whole)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("spec", [Q8_0, Q4_0], ids=lambda spec: spec.name)
def test_embedding_rows_are_what_the_format_decodes(name, spec):
    ops, blocks = backend(name), blocks_of(spec, random(1, 50, 96))
    decoded = np.empty((50, 96), np.float32)
    ggml.decode(spec, blocks.numpy(), decoded)
    ids, out = torch.tensor([0, 49, 7, 7, 16]), torch.zeros(5, 96)
    ops.embed_rows(ids, panels_of(ops, spec, blocks), out, scale=3.0)
    assert torch.equal(out, torch.from_numpy(decoded)[ids] * 3.0)


@pytest.mark.parametrize("name", BACKENDS)
def test_wrong_operands_are_refused(name):
    ops = backend(name)
    panels = panels_of(ops, Q8_0, blocks_of(Q8_0, random(1, 20, 64)))
    x, out = random(2, 3, 64), torch.zeros(3, 20)
    with pytest.raises(ValueError, match=r"scratch: quantized panels need fp32 \[3, 20\]"):
        ops.linear(x, panels, out)
    with pytest.raises(ValueError, match=r"scratch: expected float32 \[3, 20\]"):
        ops.linear(x, panels, out, scratch=torch.zeros(2, 20))
    with pytest.raises(ValueError, match="records of 500 bytes"):
        ops.linear(x, torch.zeros(2, 2, 500, dtype=torch.uint8), out, scratch=torch.zeros(3, 20))
    with pytest.raises(ValueError, match="do not fit"):
        ops.pack_rows(blocks_of(Q8_0, random(1, 4, 64)), panels, first_row=30)
    with pytest.raises(TypeError, match="uint8"):
        ops.grouped_linear(x, panels, torch.zeros(3, 4), torch.zeros(6, 16), num_experts=2, top_k=2, is_routed=False)


def test_the_scratch_is_what_the_library_takes():
    assert 4 * scratch_width(608) == native_library().GROUP_SCRATCH_BYTES * (608 // 32)
