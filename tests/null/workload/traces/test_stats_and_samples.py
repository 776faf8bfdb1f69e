# SPDX-License-Identifier: Apache-2.0
"""Figures of a trace against numpy and by hand; what is written is what is read; samples do what their labels say."""

from __future__ import annotations

import random
import statistics
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.null.workload.traces import samples
from ziggurat.errors import ConfigError, UnsupportedFeature
from ziggurat.workload.arrivals import LENGTHS, make_arrivals
from ziggurat.workload.records import Arrival
from ziggurat.workload.traces.reading import ReadOptions, TraceReader, read_trace
from ziggurat.workload.traces.sampling import Sampling
from ziggurat.workload.traces.stats import TraceSummary
from ziggurat.workload.traces.writing import write_trace


def cv_of(arrivals: list[Arrival]) -> float:
    gaps = [after.t_s - before.t_s for before, after in pairwise(arrivals)]
    return statistics.pstdev(gaps) / statistics.fmean(gaps)


def test_figures_by_hand(tmp_path: Path) -> None:
    found = (
        TraceSummary(block_tokens=10)
        .add_all(TraceReader(samples.write(tmp_path, samples.BURSTGPT)))
        .as_dict(window_s=60)
    )
    assert (found["duration_s"], found["request_rate_per_s"]) == (85, 3 / 85)
    assert found["gap_cv"] == pytest.approx(np.std([1, 84]) / np.mean([1, 84]))
    assert found["prompt_tokens"]["total"] == 290 and found["prompt_tokens"]["p50"] == 100
    assert found["elapsed_s"]["mean"] == 3.0
    assert found["sessions"] | {"requests_per_session": 0} == {
        "num_sessions": 1,
        "num_requests_outside": 1,
        "requests_per_session": 0,
        "gap_s": {"count": 1, "total": 85, "mean": 85, "min": 85, "max": 85}
        | {f"p{q}": 85 for q in (50, 80, 90, 95, 99)},
    }
    assert [(each["num_requests"], each["prompt_tokens"]["mean"]) for each in found["services"]] == [(1, 40), (2, 125)]
    # The API row's beginning is unknown; the turns of session 7 have 10 and 15 blocks.
    assert found["prefix"] == {
        "source": "session",
        "num_requests_unknown": 1,
        "block_size_tokens": 10,
        "num_blocks": 25,
        "num_distinct_blocks": 15,
        "num_repeated_blocks": 10,
        "repeated_ratio": 0.4,
    }
    windows = found["windows"]
    assert (windows["num_windows"], windows["num_empty"], windows["num_with_cv"]) == (2, 0, 0)
    assert windows["rate_per_s"]["max"] == 2 / 60 and windows["gap_cv"]["mean"] is None


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9000), st.integers(1, 900)), min_size=1, max_size=50))
def test_quantiles_are_numpys(raw: list[tuple[int, int, int]]) -> None:
    now = 0
    summary = TraceSummary()
    for index, (gap, prompt, output) in enumerate(raw):
        now += gap
        summary.add(Arrival(t_s=now, id=str(index), prompt_len=prompt, max_new=output))
    found = summary.as_dict()
    for key, values in (("prompt_tokens", [each[1] for each in raw]), ("output_tokens", [each[2] for each in raw])):
        spread = found[key]
        assert (spread["count"], spread["total"], spread["max"]) == (len(raw), sum(values), max(values))
        assert [spread[f"p{q}"] for q in (50, 80, 90, 95, 99)] == pytest.approx(
            np.percentile(values, [50, 80, 90, 95, 99])
        )
    assert found["prefix"]["source"] == "none" and found["prefix"]["repeated_ratio"] is None
    assert (found["request_rate_per_s"] is None) == (found["duration_s"] == 0)


def test_nothing_but_one_request_has_no_rate() -> None:
    found = TraceSummary().add_all([Arrival(t_s=3, id="a", prompt_len=1, max_new=1)]).as_dict()
    assert (found["request_rate_per_s"], found["gap_cv"], found["sessions"]["num_sessions"]) == (None, None, 0)
    with pytest.raises(ConfigError, match="a window must be longer than 0 s, got 0"):
        TraceSummary().add_all([Arrival(t_s=3, id="a", prompt_len=1, max_new=1)]).as_dict(window_s=0)
    with pytest.raises(ConfigError, match="at least one token, got 0"):
        TraceSummary(block_tokens=0)


KEPT = {"burstgpt": ("session", "model", "log_type", "elapsed_s"), "mooncake": ("hash_ids", "hash_block_tokens")}
numbers = st.integers(1, 3000)


@pytest.mark.parametrize("name", ["burstgpt", "azure", "vidur", "mooncake"])
@given(raw=st.lists(st.tuples(st.integers(0, 10**6), numbers, numbers, st.booleans()), min_size=1, max_size=20))
def test_what_is_written_is_what_is_read(
    tmp_path_factory: pytest.TempPathFactory, name: str, raw: list[tuple[int, int, int, bool]]
) -> None:
    """Times to a microsecond from the first row; what the format holds comes back, and what it does not is counted."""
    times = [each[0] - min(each[0] for each in raw) for each in sorted(raw)]
    arrivals = [
        Arrival(
            t_s=t_ms / 1000,
            id=f"row-{row}",
            prompt_len=prompt,
            max_new=output,
            session="s" if is_rich else None,
            model="GPT-4",
            log_type="API log",
            elapsed_s=1.5 if is_rich else None,
            hash_ids=tuple(range(-(-prompt // 512))) if is_rich else (),
            hash_block_tokens=512 if is_rich else 0,
        )
        for row, (t_ms, (_, prompt, output, is_rich)) in enumerate(zip(times, sorted(raw), strict=True), start=1)
    ]
    path = tmp_path_factory.mktemp("trace") / "trace"
    writer = write_trace(path, arrivals, name)
    found = read_trace(path)
    assert [(a.id, a.prompt_len, a.max_new) for a in found] == [(a.id, a.prompt_len, a.max_new) for a in arrivals]
    assert [a.t_s for a in found] == pytest.approx([a.t_s for a in arrivals], abs=1e-6)
    for field in KEPT.get(name, ()):
        assert [getattr(a, field) for a in found] == [getattr(a, field) for a in arrivals]
    num_rich = sum(each[3] for each in raw)
    lost = {"model": len(raw), "log_type": len(raw), "session": num_rich, "elapsed_s": num_rich, "hash_ids": num_rich}
    lost = {field: count for field, count in lost.items() if count and field not in KEPT.get(name, ())}
    if name == "mooncake":
        lost.pop("session", None)
    assert dict(writer.lost) == lost and writer.num_written == len(raw)


def test_text_becomes_hash_ids_that_share_as_much(tmp_path: Path) -> None:
    source = samples.write(tmp_path, samples.SHAREGPT, "trace.json")
    target = tmp_path / "out.jsonl"
    from ziggurat.workload.traces.formats import FormatSettings

    settings = FormatSettings(hash_block_tokens=5)
    writer = write_trace(target, TraceReader(source), "mooncake", settings)
    first, brief, second = TraceReader(target, ReadOptions(settings=settings))
    assert first.hash_ids[0] == second.hash_ids[0] != brief.hash_ids[0]
    assert writer.lost == {}


def test_a_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "out.csv"
    target.write_text("old")
    with pytest.raises(ConfigError, match="row 4"):
        write_trace(target, TraceReader(samples.write(tmp_path, samples.BURSTGPT.replace("\n90,", "\nx,"))), "vidur")
    assert target.read_text() == "old" and len(list(tmp_path.iterdir())) == 2
    with pytest.raises(ConfigError, match="cannot write the trace"):
        write_trace(tmp_path / "no" / "out.csv", [], "vidur")
    with pytest.raises(UnsupportedFeature, match="sharegpt files hold text"):
        write_trace(target, [], "sharegpt")


def bursty(count: int = 4000) -> list[Arrival]:
    return make_arrivals(count, LENGTHS.get("gpt4-conversation")(1.0), seed=2, burstiness=1 / 9)


def test_rps_scaling_keeps_the_bursts() -> None:
    arrivals = bursty()
    fast = list(Sampling(rate_scale=4).apply(arrivals))
    assert [a.t_s * 4 for a in fast] == pytest.approx([a.t_s for a in arrivals])
    assert cv_of(fast) == pytest.approx(cv_of(arrivals))
    assert Sampling(rate_scale=4).labels == ["RPS scaling: times divided by 4, the shape of the bursts is the trace's"]
    assert Sampling().labels == [] and list(Sampling().apply(arrivals)) == arrivals


def test_thinning_moves_towards_poisson_and_says_so() -> None:
    """A thinned renewal process with CV c has CV^2 = 1 + p (c^2 - 1)."""
    arrivals = bursty(20_000)
    sampling = Sampling(thin=0.25, seed=3)
    thin = list(sampling.apply(arrivals))
    assert len(thin) == pytest.approx(5000, abs=4 * (20_000 * 0.25 * 0.75) ** 0.5)
    assert cv_of(thin) ** 2 == pytest.approx(1 + 0.25 * (cv_of(arrivals) ** 2 - 1), rel=0.2)
    assert "CV of the gaps moves towards 1" in sampling.labels[0]
    assert thin == list(sampling.apply(arrivals)) != list(Sampling(thin=0.25, seed=4).apply(arrivals))


def test_modelled_scaling_draws_anew() -> None:
    api = [replace(a, model="A", log_type="API log", max_new=5) for a in bursty()]
    chat = [replace(a, model="B") for a in make_arrivals(4000, LENGTHS.get("zipf")(1.0), seed=9)]
    arrivals = sorted([*api, *chat], key=lambda a: a.t_s)
    sampling = Sampling(rate_scale=2, is_modelled=True, window_s=500, seed=1)
    made = list(sampling.apply(arrivals))
    assert len(made) == pytest.approx(16_000, rel=0.08)
    assert all(before.t_s <= after.t_s for before, after in pairwise(made))
    by_service = {each.model: [a for a in made if a.model == each.model] for each in made}
    assert {a.max_new for a in by_service["A"]} == {5} and len({a.max_new for a in by_service["B"]}) > 100
    # Each keeps its own bursts.
    assert cv_of(by_service["A"]) > 2.3 and cv_of(by_service["B"]) < 1.4 and len({a.id for a in made}) == len(made)
    assert statistics.fmean(a.prompt_len for a in made if a.model == "A") == pytest.approx(830, rel=0.1)
    assert made == list(sampling.apply(arrivals)) and "modelled" in sampling.labels[0]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"thin": 0}, "share to keep must be above 0"),
        ({"thin": 1.5}, "at most 1, got 1.5"),
        ({"rate_scale": 0}, "rate scale must be above 0, got 0"),
        ({"rate_scale": float("inf")}, "rate scale must be above 0"),
        ({"num_requests": 0}, "at least one request"),
    ],
)
def test_bad_samplings(change: dict[str, float], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Sampling(**change)


def test_the_first_n_read_no_further() -> None:
    dice = random.Random(0)

    def endless() -> object:
        now = 0.0
        while True:
            now += dice.random()
            yield Arrival(t_s=now, id=str(now), prompt_len=1, max_new=1)

    assert len(list(Sampling(num_requests=7).apply(endless()))) == 7
