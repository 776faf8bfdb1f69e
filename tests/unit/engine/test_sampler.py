# SPDX-License-Identifier: Apache-2.0
"""The sampler against a brute-force reference, and its draws against the distribution they should have."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from ziggurat.engine.sampler import Sampler, uniform
from ziggurat.errors import EngineError
from ziggurat.scheduling.protocol import SampleRequest
from ziggurat.scheduling.sampling import SamplingParams

VOCAB = 23


def ask(
    params: SamplingParams,
    *,
    seeds: tuple[int, ...] = (7,),
    prompt: tuple[int, ...] = (1, 2, 3),
    output: tuple[int, ...] = (),
    eos: tuple[int, ...] = (0,),
) -> SampleRequest:
    return SampleRequest(
        seq_ids=tuple(f"s{i}" for i in range(len(seeds))),
        seeds=seeds,
        params=params,
        prompt_ids=prompt,
        output_ids=output,
        eos_ids=eos,
    )


def brute_force(row: NDArray[np.float32], request: SampleRequest) -> list[tuple[int, float]]:
    """(token id, probability) of every token that may be drawn, with loops and dictionaries only."""
    params = request.params
    scores = {i: float(value) for i, value in enumerate(row)}
    for i, bias in params.logit_bias.items():
        scores[i] += bias
    if len(request.output_ids) < params.min_tokens:
        for i in (*request.eos_ids, *params.stop_token_ids):
            scores[i] = -math.inf
    for i in {*request.prompt_ids, *request.output_ids}:
        factor = params.repetition_penalty
        scores[i] = scores[i] / factor if scores[i] > 0 else scores[i] * factor
    for i in set(request.output_ids):
        scores[i] -= params.frequency_penalty * list(request.output_ids).count(i) + params.presence_penalty
    order = sorted(scores, key=lambda i: (-scores[i], i))
    if params.temperature == 0:
        return [(order[0], 1.0)]
    best = scores[order[0]]
    weight = {i: math.exp((scores[i] - best) / params.temperature) for i in order}
    order = [i for i in order if weight[i] >= params.min_p]
    if params.top_k > 0:
        order = order[: params.top_k]
    total, reached, nucleus = sum(weight[i] for i in order), 0.0, []
    for i in order:
        if reached < params.top_p * total or params.top_p == 1:
            nucleus.append(i)
        reached += weight[i]
    total = sum(weight[i] for i in nucleus)
    return [(i, weight[i] / total) for i in nucleus]


PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0, 0.3, 1.0, 2.5]),
    top_k=st.sampled_from([0, -1, 1, 3, VOCAB, VOCAB + 5]),
    top_p=st.sampled_from([1.0, 0.05, 0.5, 0.9, 0.999]),
    min_p=st.sampled_from([0.0, 0.1, 0.7, 1.0]),
    presence_penalty=st.sampled_from([0.0, 1.5]),
    frequency_penalty=st.sampled_from([0.0, -0.5, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 0.5, 1.3]),
    logit_bias=st.dictionaries(st.integers(0, VOCAB - 1), st.sampled_from([-100.0, -1.0, 2.0]), max_size=3),
    min_tokens=st.integers(0, 3),
    max_tokens=st.just(10),
    stop_token_ids=st.just((5,)),
)
# Multiples of 1/4 make ties likely and keep sums exact enough for the reference to agree on every border.
ROWS = arrays(np.float32, VOCAB, elements=st.integers(-40, 40).map(lambda value: value / 4))
OUTPUTS = st.lists(st.integers(0, VOCAB - 1), max_size=5).map(tuple)


@given(
    row=ROWS, params=PARAMS, output=OUTPUTS, seeds=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=40)
)
def test_draws_come_from_the_reference_set(
    row: NDArray[np.float32], params: SamplingParams, output: tuple[int, ...], seeds: list[int]
) -> None:
    request = ask(params, seeds=tuple(seeds), output=output)
    before = row.copy()
    tokens = [each.token_id for each in Sampler(VOCAB).sample(row, request)]
    allowed = brute_force(row, request)
    near = {i for i, _ in allowed} | {i for i, _ in brute_force_borders(row, request)}
    assert set(tokens) <= near
    assert np.array_equal(row, before)
    if params.temperature == 0:
        assert set(tokens) == {allowed[0][0]}


def brute_force_borders(row: NDArray[np.float32], request: SampleRequest) -> list[tuple[int, float]]:
    """The set with a top-p a hair larger: cumulated sums that equal top_p up to rounding may fall on either side."""
    params = request.params
    if params.top_p == 1:
        return []
    fields = {name: getattr(params, name) for name in params.__slots__} | {"top_p": params.top_p * (1 + 1e-12)}
    return brute_force(row, ask(SamplingParams(**fields), output=tuple(request.output_ids)))


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=0.7, top_k=5),
        SamplingParams(temperature=1.3, top_p=0.8),
        SamplingParams(temperature=1.5, min_p=0.1, top_k=12, top_p=0.95, repetition_penalty=1.2),
    ],
)
def test_draws_have_the_right_frequencies(params: SamplingParams) -> None:
    """Chi-square over 20,000 draws with consecutive seeds; p above 1e-4 (the seeds are fixed, so the test is too)."""
    row = np.random.default_rng(1).normal(0, 1.5, VOCAB).astype(np.float32)
    sampler, count = Sampler(VOCAB), 20_000
    request = ask(params, seeds=tuple(range(count)))
    tokens = [each.token_id for each in sampler.sample(row, request)]
    expected = dict(brute_force(row, request))
    assert set(tokens) <= set(expected)
    observed = [tokens.count(i) for i in expected]
    assert scipy.stats.chisquare(observed, [p * count for p in expected.values()]).pvalue > 1e-4


def test_positions_of_one_seed_are_independent() -> None:
    points = [uniform(11, position) for position in range(4000)]
    assert scipy.stats.kstest(points, "uniform").pvalue > 1e-4
    assert abs(float(np.corrcoef(points[:-1], points[1:])[0, 1])) < 0.06
    assert uniform(11, 5) == points[5] and uniform(-1, 5) != uniform(1, 5)


@given(seed=st.integers(-(2**63), 2**64 - 1), position=st.integers(0, 2**40))
def test_the_generator_is_numpys_philox(seed: int, position: int) -> None:
    key = np.array([seed % 2**64, position], dtype=np.uint64)
    assert uniform(seed, position) == (int(np.random.Philox(key=key).random_raw()) >> 11) * 2.0**-53


def test_a_draw_depends_on_seed_and_position_only() -> None:
    row = np.random.default_rng(2).normal(0, 1, VOCAB).astype(np.float32)
    params, sampler = SamplingParams(), Sampler(VOCAB)
    alone = sampler.sample(row, ask(params, seeds=(3,)))[0]
    sampler.sample(row[::-1].copy(), ask(params, seeds=(9, 8, 7)))
    together = sampler.sample(row, ask(params, seeds=(1, 2, 3)))[2]
    moved = sampler.sample(row, ask(params, seeds=(3,), prompt=(1,), output=(2, 3)))[0]
    assert alone == together == moved


def test_greedy_takes_the_lowest_id_of_equals() -> None:
    row = np.zeros(VOCAB, dtype=np.float32)
    row[[4, 9, 17]] = 2
    sampler = Sampler(VOCAB)
    assert sampler.sample(row, ask(SamplingParams(temperature=0)))[0].token_id == 4
    assert sampler.sample(row, ask(SamplingParams(temperature=0, logprobs=2)))[0].token_id == 4
    assert {t.token_id for t in sampler.sample(row, ask(SamplingParams(top_k=2), seeds=tuple(range(60))))} == {4, 9}


def test_logprobs_are_the_models_own() -> None:
    """Neither penalties nor temperature show in them; ties come lowest id first."""
    row = np.random.default_rng(3).normal(0, 2, VOCAB).astype(np.float32)
    row[6] = row[2]
    reference = row.astype(np.float64) - scipy.special.logsumexp(row.astype(np.float64))
    params = SamplingParams(temperature=0.2, presence_penalty=2, logit_bias={3: 50.0}, logprobs=5)
    token = Sampler(VOCAB).sample(row, ask(params, output=(1,)))[0]
    assert token.token_id == 3
    assert token.logprob == pytest.approx(reference[3], abs=1e-12)
    order = sorted(range(VOCAB), key=lambda i: (-reference[i], i))[:5]
    assert [i for i, _ in token.top_logprobs] == order
    assert [value for _, value in token.top_logprobs] == pytest.approx([reference[i] for i in order], abs=1e-12)
    assert Sampler(VOCAB).sample(row, ask(SamplingParams(logprobs=0)))[0].top_logprobs == ()
    assert Sampler(VOCAB).sample(row, ask(SamplingParams()))[0].logprob is None


def test_a_tiny_temperature_is_greedy_and_quiet() -> None:
    row = np.linspace(-80, 80, VOCAB).astype(np.float32)
    token = Sampler(VOCAB).sample(row, ask(SamplingParams(temperature=1e-300)))[0]
    assert token.token_id == VOCAB - 1


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0, 1])
def test_broken_logits_are_an_error(value: float, temperature: float) -> None:
    row = np.zeros(VOCAB, dtype=np.float32)
    row[3] = value
    with pytest.raises(EngineError, match="NaN or infinity"):
        Sampler(VOCAB).sample(row, ask(SamplingParams(temperature=temperature)))


@pytest.mark.parametrize("temperature", [0, 1])
def test_nothing_left_is_an_error(temperature: float) -> None:
    row = np.zeros(2, dtype=np.float32)
    params = SamplingParams(min_tokens=1, stop_token_ids=(1,), temperature=temperature)
    with pytest.raises(EngineError, match="no token is left"):
        Sampler(2).sample(row, ask(params, prompt=(), eos=(0,)))
