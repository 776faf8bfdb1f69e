# SPDX-License-Identifier: Apache-2.0
"""Lengths that depend on one another, published quantiles, conversations that grow, and failures that are counted."""

from __future__ import annotations

import math
import random
import statistics
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cores import make_core
from ziggurat.clock import VirtualClock
from ziggurat.errors import ConfigError
from ziggurat.scheduling.client import CoreClient
from ziggurat.simulation.executor import SimulatedExecutor, linear_cost
from ziggurat.workload import conditional
from ziggurat.workload.arrivals import LENGTHS, Lengths, uniform
from ziggurat.workload.conditional import ConditionalLengths, NearestTexts, QuantileLengths, TruncatedZipf
from ziggurat.workload.failures import FailureModel, failure_report
from ziggurat.workload.records import Arrival, RequestRecord
from ziggurat.workload.replay import replay
from ziggurat.workload.sessions import SessionModel
from ziggurat.workload.sources import ClosedLoop, OpenLoop

pairs = st.lists(st.tuples(st.integers(1, 50), st.integers(1, 900)), min_size=1, max_size=60)


@given(pairs, st.integers(1, 30), st.integers(0, 99))
def test_answers_come_from_the_bin_of_their_prompt(raw: list[tuple[int, int]], num_bins: int, seed: int) -> None:
    model = ConditionalLengths.fit(raw, num_bins=num_bins)
    assert sorted(pair for found in model.bins for pair in zip(*found, strict=True)) == sorted(raw)
    assert len(model.bins) == len(model.edges) <= num_bins and model.edges[-1] == max(prompt for prompt, _ in raw)
    lows = [0, *model.edges[:-1]]
    for low, high, (prompts, _) in zip(lows, model.edges, model.bins, strict=True):
        assert prompts and all(low < prompt <= high for prompt in prompts)
    rng = random.Random(seed)
    for _ in range(10):
        prompt, answer = model.draw(rng)
        place = next(index for index, edge in enumerate(model.edges) if prompt <= edge)
        assert prompt in model.bins[place][0] and answer in model.bins[place][1]
    assert model.answer_to(10**6, rng) in model.bins[-1][1]


def test_the_dependence_survives() -> None:
    rng = random.Random(0)
    raw = [(prompt, 2 * prompt + rng.randrange(9)) for prompt in (rng.randrange(1, 1000) for _ in range(3000))]
    model = ConditionalLengths.fit(raw)
    drawn = np.array([model.draw(rng) for _ in range(5000)])
    assert np.corrcoef(drawn.T)[0, 1] > 0.98
    assert drawn.mean(axis=0) == pytest.approx(np.mean(raw, axis=0), rel=0.03)
    with pytest.raises(ConfigError, match="at least one pair in at least one bin, got 0 in 20"):
        ConditionalLengths.fit([])


@given(pairs, st.integers(1, 60), st.integers(1, 900))
def test_the_nearest_text_is_the_nearest(raw: list[tuple[int, int]], prompt: int, answer: int) -> None:
    def apart(pair: tuple[int, int]) -> float:
        return math.log(pair[0] / prompt) ** 2 + math.log(pair[1] / answer) ** 2

    found = NearestTexts(raw).index(prompt, answer)
    assert apart(raw[found]) == pytest.approx(min(map(apart, raw)), abs=1e-12)
    if (prompt, answer) in raw:
        assert raw[found] == (prompt, answer)


def test_texts_without_length_are_none() -> None:
    for bad in ([], [(0, 3)]):
        with pytest.raises(ConfigError, match="texts of at least one token"):
            NearestTexts(bad)


@pytest.mark.parametrize(("exponent", "longest"), [(1.1, 1024), (0.0, 6), (2.5, 40)])
def test_zipf_has_the_shares_of_its_formula(exponent: float, longest: int) -> None:
    law, rng = TruncatedZipf(exponent=exponent, longest=longest), random.Random(1)
    drawn = [law.draw(rng) for _ in range(30_000)]
    total = sum(n**-exponent for n in range(1, longest + 1))
    for n in (1, 2, longest // 2):
        share = n**-exponent / total
        assert drawn.count(n) / len(drawn) == pytest.approx(share, abs=4 * (share / len(drawn)) ** 0.5)
    assert min(drawn) >= 1 and max(drawn) <= longest
    with pytest.raises(ConfigError, match="longest of at least 1"):
        TruncatedZipf(longest=0)


# As published: mean, then (percent, tokens).
PUBLISHED = {
    "GPT4_CONVERSATION_PROMPT": (830, [(50, 582), (80, 1427), (95, 2345), (99, 3549)]),
    "GPT4_CONVERSATION_OUTPUT": (271, [(50, 243), (80, 434), (95, 669), (99, 964)]),
    "AZURE_CONVERSATION_PROMPT": (1154.7, [(50, 1020), (90, 2734), (99, 4142)]),
    "AZURE_CONVERSATION_OUTPUT": (211.1, [(50, 129), (90, 424), (99, 601)]),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_figures_come_out(name: str) -> None:
    law: QuantileLengths = getattr(conditional, name)
    mean, points = PUBLISHED[name]
    rng = random.Random(1)
    drawn = [law.draw(rng) for _ in range(40_000)]
    assert statistics.fmean(drawn) == pytest.approx(mean, rel=0.03)
    for percent, tokens in points:
        assert law.at(percent / 100) == pytest.approx(tokens)
        assert np.percentile(drawn, percent) == pytest.approx(tokens, rel=0.06)
    assert (law.at(0), law.at(1)) == (law.shortest, law.longest)
    shares = [law.at(n / 500) for n in range(501)]
    assert shares == sorted(shares)


def test_figures_that_no_law_has() -> None:
    with pytest.raises(ConfigError, match="no distribution through .* has the mean 9"):
        QuantileLengths(mean=9, points=((0.5, 100),), longest=200)
    with pytest.raises(ConfigError, match="quantiles must ascend"):
        QuantileLengths(mean=9, points=((0.5, 100), (0.4, 120)), longest=200)


def sessions(**more: float) -> SessionModel:
    return SessionModel(lengths=Lengths(prompt=uniform(20, spread=0.5), output=uniform(9)), **more)


@given(st.integers(0, 10**6), st.integers(10, 300))
def test_every_question_brings_all_that_was_said(seed: int, max_model_len: int) -> None:
    model = sessions(mean_turns=4, max_model_len=max_model_len)
    arrivals = model.arrivals([0.0, 3.0, 3.5], seed=seed)
    assert arrivals == model.arrivals([0.0, 3.0, 3.5], seed=seed)
    assert all(before.t_s <= after.t_s for before, after in pairwise(arrivals))
    for name in {arrival.session for arrival in arrivals}:
        turns = [arrival for arrival in arrivals if arrival.session == name]
        for before, after in pairwise(turns):
            assert after.prompt_len > before.prompt_len + before.max_new
            assert after.t_s >= before.t_s + before.max_new / model.output_tokens_per_s
            assert list(after.prompt(97))[: before.prompt_len] == list(before.prompt(97))
        assert all(turn.prompt_len + turn.max_new <= max_model_len for turn in turns)
    assert len({arrival.session for arrival in arrivals}) == 3


def test_turns_have_the_mean_that_was_asked_for() -> None:
    counts = [len(sessions(mean_turns=5.5).turns(str(seed))) for seed in range(4000)]
    # A geometric distribution of mean m has a standard deviation of sqrt(m (m - 1)).
    assert statistics.fmean(counts) == pytest.approx(5.5, abs=4 * (5.5 * 4.5 / 4000) ** 0.5)
    assert all(len(sessions(mean_turns=1).turns(str(seed))) == 1 for seed in range(50))
    with pytest.raises(ConfigError, match="at least one turn, got a mean of 0.5"):
        sessions(mean_turns=0.5)
    with pytest.raises(ConfigError, match="more than 0 tokens/s, got 0"):
        sessions(output_tokens_per_s=0)


def make_client(clock: VirtualClock, *, queue: int = 1000) -> CoreClient:
    executor = SimulatedExecutor(clock, linear_cost(base_s=0.1, per_token_s=0.001))
    return CoreClient(
        make_core(num_blocks=4000, executor=executor, max_queued_requests=queue, max_model_len=1000, tokens=256), clock
    )


def test_conversations_reuse_what_was_computed_in_both_loops() -> None:
    """The same description in an open and a closed loop: nearly all history is found cached, and only new tokens are computed."""
    model = sessions(mean_turns=5, max_model_len=900)
    clock = VirtualClock()
    arrivals = model.arrivals([7.0 * n for n in range(12)], seed=1)
    found = replay(OpenLoop(arrivals), make_client(clock))
    later = [r for r in found.records if not r.id.endswith(".0")]
    assert later and all(record.num_cached_tokens > 0 for record in later)
    closed = ClosedLoop(model.conversations(12, seed=1), num_clients=3, vocab_size=500)
    clock = VirtualClock()
    records = replay(closed, make_client(clock)).records
    assert {(r.id, r.num_prompt_tokens) for r in records} == {(a.id, a.prompt_len) for a in arrivals}


gaps = st.lists(st.floats(0, 3), min_size=1, max_size=25)


@given(gaps)
def test_a_replay_never_sends_early_and_says_how_late_it_was(raw: list[float]) -> None:
    times = np.cumsum(raw)
    clock = VirtualClock()
    client = make_client(clock)
    sent: dict[str, float] = {}
    submit = client.submit

    def note(arrival: Arrival, due_s: float) -> None:
        sent[arrival.id] = clock.now()
        submit(arrival, due_s)

    client.submit = note
    found = replay(OpenLoop([Arrival(t_s=t, id=str(n), prompt_len=5, max_new=2) for n, t in enumerate(times)]), client)
    late = [sent[str(n)] - t for n, t in enumerate(times)]
    assert min(late) >= 0 and found.drift.max_s == pytest.approx(max(late))
    assert failure_report(found.records).failure_rate == 0


def test_dropped_and_late_requests_are_counted() -> None:
    clock = VirtualClock()
    arrivals = [Arrival(t_s=0.0, id=str(n), prompt_len=5, max_new=4) for n in range(30)]
    records = replay(OpenLoop(arrivals), make_client(clock, queue=10)).records
    report = failure_report(records, timeout_s=0.5)
    refused = sum(record.reason == "error" for record in records)
    assert report.num_dropped == refused > 0
    assert report.num_answered + report.num_dropped + report.num_late == 30 and report.num_late > 0
    assert report.failure_rate == (30 - report.num_answered) / 30
    still_open = RequestRecord(id="x", arrival_s=0.0, num_prompt_tokens=1)
    assert failure_report([still_open]).num_dropped == 1 and failure_report([]).failure_rate is None
    with pytest.raises(ConfigError, match="above 0 s, got 0"):
        failure_report([], timeout_s=0)


def test_failures_of_a_trace() -> None:
    model = FailureModel.fit(num_answered=90, num_failed=10, elapsed_s=[1.0] * 85 + [99.0] * 5, timeout_s=60)
    assert model.share == 0.15
    arrivals = [Arrival(t_s=n, id=str(n), prompt_len=1, max_new=1) for n in range(4000)]
    left = model.survivors(arrivals, seed=1)
    assert len(left) / 4000 == pytest.approx(0.85, abs=0.03) and left == model.survivors(arrivals, seed=1)
    assert FailureModel(share=0).survivors(arrivals) == arrivals
    with pytest.raises(ConfigError, match="below 1, got 1"):
        FailureModel(share=1)
    with pytest.raises(ConfigError, match="none of 4 requests was answered"):
        FailureModel.fit(num_answered=0, num_failed=4)


def test_scaled_lengths() -> None:
    for name in ("gpt4-conversation", "azure-conversation", "zipf"):
        whole, part = (LENGTHS.get(name)(scale).draw(random.Random(3)) for scale in (1.0, 0.25))
        assert part[0] <= whole[0] and part[1] <= whole[1]
    assert LENGTHS.get("gpt4-conversation")(0.5).draw(random.Random(3))[0] * 2 == pytest.approx(
        LENGTHS.get("gpt4-conversation")(1.0).draw(random.Random(3))[0]
    )
