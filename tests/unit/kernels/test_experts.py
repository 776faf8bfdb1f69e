# SPDX-License-Identifier: Apache-2.0
"""Routing, one matrix per expert, weighted sums and soft caps: against fp64, between backends, and row by row bit for bit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.unit.kernels.helpers import BACKENDS, DTYPES, backend, packed, random, relative_error
from ziggurat import kernels
from ziggurat.kernels.ops import load_native

EXPERTS = st.integers(1, 20).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, min(n, 6))))
SPREADS = st.sampled_from(["random", "one takes all", "some take none"])


def make_routing(seed: int, num_tokens: int, num_experts: int, top_k: int, spread: str) -> Tensor:
    """Distinct experts per token and any probabilities; ``one takes all`` puts every token's first choice on the last expert."""
    generator = torch.Generator().manual_seed(seed)
    pool = max(top_k, num_experts // 2) if spread == "some take none" else num_experts
    chosen = torch.stack([torch.randperm(pool, generator=generator)[:top_k] for _ in range(num_tokens)])
    if spread == "one takes all":
        chosen = (torch.arange(top_k) + num_experts - 1).remainder(num_experts).repeat(num_tokens, 1)
    return torch.cat((chosen.float(), torch.rand(num_tokens, top_k, generator=generator)), 1)


def route(ops: kernels.KernelOps, logits: Tensor, top_k: int, normalize: bool) -> Tensor:
    out = torch.full((logits.shape[0], 2 * top_k), torch.nan)
    ops.route(logits.clone(), out, top_k=top_k, normalize=normalize)
    return out


def grouped(
    ops: kernels.KernelOps,
    x: Tensor,
    weights: Tensor,
    routing: Tensor,
    *,
    is_routed: bool,
    panels: Tensor | None = None,
) -> Tensor:
    """``weights`` is [E, N, K]."""
    top_k = routing.shape[1] // 2
    panels = packed(ops, weights.flatten(0, 1)) if panels is None else panels
    out = torch.full((routing.shape[0] * top_k, weights.shape[1]), torch.nan)
    ops.grouped_linear(x, panels, routing, out, num_experts=len(weights), top_k=top_k, is_routed=is_routed)
    return out


@pytest.mark.parametrize("name", BACKENDS)
@settings(max_examples=40)
@given(num_rows=st.integers(1, 30), experts=EXPERTS, normalize=st.booleans(), seed=st.integers(0, 1000))
def test_route_matches_fp64(name, num_rows, experts, normalize, seed):
    num_experts, top_k = experts
    logits = random(seed, num_rows, num_experts) * 3.0
    out = route(backend(name), logits, top_k, normalize)
    probabilities, chosen = torch.sort(logits.double().softmax(-1), descending=True, stable=True)
    expected = probabilities[:, :top_k]
    if normalize:
        expected = expected / expected.sum(-1, keepdim=True)
    assert torch.equal(out[:, :top_k], chosen[:, :top_k].float())
    assert bool(((out[:, top_k:] - expected).abs() <= 2e-6 * expected).all())
    last = route(backend(name), logits[-1:], top_k, normalize)
    assert torch.equal(last, out[-1:])


@pytest.mark.parametrize("name", BACKENDS)
def test_equal_probabilities_go_to_the_lower_expert(name):
    logits = torch.tensor([[1.0, 2.0, 2.0, 1.0, 2.0], [0.0] * 5, [-200.0, 5.0, -100.0, -300.0, -200.0]])
    out = route(backend(name), logits, 3, normalize=False)
    # In the last row everything but expert 1 underflows to probability zero: then the lower numbers follow.
    assert out[:, :3].tolist() == [[1, 2, 4], [0, 1, 2], [1, 0, 2]]
    assert out[1, 3:].tolist() == [out[1, 3].item()] * 3


@pytest.mark.parametrize("name", BACKENDS)
def test_a_row_of_nan_still_names_experts_and_stays_nan(name):
    logits = random(1, 3, 9)
    clean = route(backend(name), logits, 4, normalize=True)
    logits[1, 8] = torch.nan
    out = route(backend(name), logits, 4, normalize=True)
    assert out[1, :4].tolist() == [0, 1, 2, 3]
    assert out[1, 4:].isnan().all()
    assert torch.equal(out[[0, 2]], clean[[0, 2]])


@pytest.mark.parametrize("name", BACKENDS)
@settings(max_examples=40)
@given(
    num_tokens=st.integers(1, 40),
    experts=EXPERTS,
    k=st.integers(1, 70),
    num_panels=st.integers(1, 6),
    dtype=st.sampled_from(sorted(DTYPES)),
    spread=SPREADS,
    is_routed=st.booleans(),
)
def test_grouped_linear_matches_fp64(name, num_tokens, experts, k, num_panels, dtype, spread, is_routed):
    num_experts, top_k = experts
    routing = make_routing(3, num_tokens, num_experts, top_k, spread)
    weights = random(1, num_experts, 16 * num_panels, k).to(DTYPES[dtype])
    x = random(2, num_tokens * top_k if is_routed else num_tokens, k)
    out = grouped(backend(name), x, weights, routing, is_routed=is_routed)
    rows = x if is_routed else x.repeat_interleave(top_k, 0)
    chosen = routing[:, :top_k].flatten().long()
    expected = torch.einsum("rk,rnk->rn", rows.double(), weights.double()[chosen])
    assert relative_error(out, expected) < 1e-5


@pytest.mark.parametrize("name", BACKENDS)
@settings(max_examples=25)
@given(data=st.data(), num_tokens=st.integers(2, 60), experts=EXPERTS, spread=SPREADS, is_routed=st.booleans())
def test_grouped_rows_do_not_depend_on_the_batch(name, data, num_tokens, experts, spread, is_routed):
    """Any other tokens, in any order and on any experts, leave a token's bits alone."""
    num_experts, top_k = experts
    ops = backend(name)
    routing = make_routing(5, num_tokens, num_experts, top_k, spread)
    weights, x = random(1, num_experts, 80, 33).bfloat16(), random(2, num_tokens, top_k, 33)
    panels = packed(ops, weights.flatten(0, 1))

    def run(tokens: list[int]) -> Tensor:
        rows = x[tokens].flatten(0, 1) if is_routed else x[tokens, 0]
        out = grouped(ops, rows, weights, routing[tokens], is_routed=is_routed, panels=panels)
        return out.view(len(tokens), top_k, 80)

    whole = run(list(range(num_tokens)))
    picked = data.draw(st.lists(st.integers(0, num_tokens - 1), min_size=1, max_size=num_tokens))
    assert torch.equal(run(picked), whole[picked])


@pytest.mark.parametrize("name", BACKENDS)
def test_one_expert_is_a_plain_linear_to_the_bit(name):
    ops = backend(name)
    weights, x = random(1, 1, 96, 50).bfloat16(), random(2, 23, 50)
    routing = torch.cat((torch.zeros(23, 1), torch.ones(23, 1)), 1)
    plain = torch.empty(23, 96)
    ops.linear(x, packed(ops, weights[0]), plain)
    assert torch.equal(grouped(ops, x, weights, routing, is_routed=False), plain)


def test_grouped_linear_is_the_same_on_one_thread_and_on_three():
    routing = make_routing(3, 97, 8, 2, "random")
    weights, x = random(1, 8, 512, 100).bfloat16(), random(2, 97, 100)
    three = grouped(backend("native", num_threads=3), x, weights, routing, is_routed=False)
    one = grouped(backend("native", num_threads=1), x, weights, routing, is_routed=False)
    backend("native", num_threads=2)
    assert torch.equal(one, three)


@pytest.mark.parametrize("name", BACKENDS)
@settings(max_examples=30)
@given(num_tokens=st.integers(1, 30), width=st.integers(1, 90), top_k=st.integers(1, 6), accumulate=st.booleans())
def test_combine_matches_fp64(name, num_tokens, width, top_k, accumulate):
    ops = backend(name)
    routing = make_routing(1, num_tokens, 8, top_k, "random")
    x, before = random(2, num_tokens * top_k, width), random(3, num_tokens, width)
    out = before.clone() if accumulate else torch.full_like(before, torch.nan)
    ops.combine(x, routing, out, top_k=top_k, accumulate=accumulate)
    expected = (x.double().view(num_tokens, top_k, width) * routing[:, top_k:, None].double()).sum(1)
    assert relative_error(out, expected + before.double() if accumulate else expected) < 1e-6
    last = before[-1:].clone()
    ops.combine(x[-top_k:], routing[-1:], last, top_k=top_k, accumulate=accumulate)
    assert torch.equal(last, out[-1:])


@pytest.mark.parametrize("name", BACKENDS)
@settings(max_examples=30)
@given(num_rows=st.integers(1, 20), width=st.integers(1, 90), cap=st.sampled_from([0.5, 6.0, 30.0, 50.0]))
def test_soft_cap_matches_fp64_down_to_small_values(name, num_rows, width, cap):
    x = random(1, num_rows, width) * torch.logspace(-6, 3, num_rows)[:, None]
    expected = (x.double() / cap).tanh() * cap
    out = x.clone()
    backend(name).soft_cap(out, cap=cap)
    assert bool(((out - expected).abs() <= 1e-6 * expected.abs()).all())
    last = x[-1:].clone()
    backend(name).soft_cap(last, cap=cap)
    assert torch.equal(last, out[-1:])


@pytest.mark.parametrize("name", BACKENDS)
def test_soft_cap_at_the_edges(name):
    x = torch.tensor([[0.0, torch.inf, -torch.inf, torch.nan, 1e30, -1e30, 1e-40, 3.0, -3.0]])
    backend(name).soft_cap(x, cap=4.0)
    assert x[0, :3].tolist() == [0.0, 4.0, -4.0]
    assert x[0, 3].isnan()
    assert x[0, 4:6].tolist() == [4.0, -4.0]
    assert 0.0 <= x[0, 6] <= 1e-39
    assert x[0, 7] == -x[0, 8]


def test_backends_agree_within_rounding():
    logits, x = random(1, 31, 12), random(2, 31, 48)
    gate_up, down = random(3, 12, 64, 48).bfloat16(), random(4, 12, 48, 64).bfloat16()
    outs = []
    for name in BACKENDS:
        ops = backend(name)
        routing = route(ops, logits, 3, normalize=True)
        hidden = grouped(ops, x, gate_up, routing, is_routed=False)
        out = x.clone()
        ops.combine(grouped(ops, hidden, down, routing, is_routed=True), routing, out, top_k=3, accumulate=True)
        outs.append(out)
    assert relative_error(outs[0], outs[1].double()) < 1e-5


@pytest.mark.parametrize("isa", ["avx512", "avx2", "portable"])
def test_every_instruction_set_computes_the_same(isa):
    library = load_native()
    assert library is not None
    if isa not in library.supported_isas():
        pytest.skip(f"this processor or build has no {isa}")
    before = library.isa()
    native, twin = backend("native"), backend("torch")
    assert library.select_isa(isa)
    try:
        logits, x, weights = random(1, 19, 11), random(2, 19, 30), random(3, 11, 32, 30)
        routing = route(native, logits, 3, normalize=False)
        assert relative_error(routing, route(twin, logits, 3, normalize=False).double()) < 1e-6
        out = grouped(native, x, weights, routing, is_routed=False)
        assert relative_error(out, grouped(twin, x, weights, routing, is_routed=False).double()) < 1e-5
        capped = x.clone()
        native.soft_cap(capped, cap=2.0)
        assert relative_error(capped, (x.double() / 2.0).tanh() * 2.0) < 1e-6
    finally:
        library.select_isa(before)


@pytest.mark.parametrize("name", BACKENDS)
def test_no_rows_is_no_work(name):
    ops, none = backend(name), torch.empty(0, 16)
    ops.soft_cap(none, cap=1.0)
    ops.route(none, torch.empty(0, 4), top_k=2, normalize=True)
    ops.grouped_linear(none, torch.zeros(3, 16, 16), torch.empty(0, 4), none, num_experts=3, top_k=2, is_routed=True)
    ops.combine(none, torch.empty(0, 4), none, top_k=2)


@pytest.mark.parametrize("name", BACKENDS)
def test_wrong_operands_are_refused(name):
    ops = backend(name)
    weights, x = random(1, 4, 16, 8), random(2, 3, 8)
    for bad in (4.0, -1.0, torch.nan):
        with pytest.raises(ValueError, match="an expert that does not exist"):
            grouped(ops, x, weights, torch.tensor([[0.0, 1.0], [bad, 1.0], [2.0, 1.0]]), is_routed=False)
    routing = make_routing(1, 3, 4, 2, "random")
    with pytest.raises(ValueError, match="x: expected"):
        grouped(ops, x, weights, routing, is_routed=True)
    with pytest.raises(ValueError, match="4 panels do not divide among 3 experts"):
        grouped(ops, x, weights[:3], routing, is_routed=False, panels=packed(ops, weights.flatten(0, 1)))
    with pytest.raises(ValueError, match="top_k 5 of 4 experts"):
        route(ops, random(1, 2, 4), 5, normalize=True)
