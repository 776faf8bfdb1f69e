# SPDX-License-Identifier: Apache-2.0
"""Records and figures, against numbers worked out by hand and against numpy."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ziggurat.errors import ConfigError
from ziggurat.workload.metrics import percentile, summarize
from ziggurat.workload.records import Arrival, RecordBook, RequestRecord


def record(name: str = "a", arrival_s: float = 0.0, times_s: tuple[float, ...] = (1.0, 1.5, 2.5)) -> RequestRecord:
    return RequestRecord(
        id=name,
        arrival_s=arrival_s,
        num_prompt_tokens=10,
        first_scheduled_s=arrival_s + 0.25,
        token_times_s=(times_s,),
        finish_s=times_s[-1],
        reason="length",
    )


def failed(name: str, reason: str) -> RequestRecord:
    return RequestRecord(
        id=name,
        arrival_s=1.0,
        num_prompt_tokens=10,
        token_times_s=((1.5,),),
        finish_s=2.0,
        reason=reason,  # type: ignore[arg-type]
    )


def test_latencies_of_one_request() -> None:
    one = record()
    assert (one.queue_s, one.ttft_s, one.tpot_s, one.itl_s, one.e2el_s) == (0.25, 1.0, 0.75, [0.5, 1.0], 2.5)


def test_a_single_token_has_no_gap() -> None:
    one = record(times_s=(1.0,))
    assert (one.ttft_s, one.tpot_s, one.itl_s) == (1.0, None, [])
    summary = summarize([one])
    assert (summary["mean_tpot_ms"], summary["p99_itl_ms"], summary["mean_ttft_ms"]) == (None, None, 1000.0)


def test_gaps_are_taken_within_a_continuation() -> None:
    two = RequestRecord(
        id="a",
        arrival_s=0.0,
        num_prompt_tokens=1,
        token_times_s=((1.0, 3.0), (2.0, 3.0, 4.0), ()),
        finish_s=4.0,
        reason="stop",
    )
    assert (two.ttft_s, two.itl_s, two.num_output_tokens) == (1.0, [2.0, 1.0, 1.0], 5)
    assert two.tpot_s == pytest.approx(4 / 3)


def test_summary_by_hand() -> None:
    summary = summarize([record("a"), record("b", 1.0, (3.0, 3.5))], goodput={"ttft": 1500, "tpot": 800})
    assert summary["duration"] == 3.5
    assert (summary["completed"], summary["failed"], summary["total_input_tokens"]) == (2, 0, 20)
    assert summary["total_output_tokens"] == 5
    assert summary["request_throughput"] == pytest.approx(2 / 3.5)
    assert summary["output_throughput"] == pytest.approx(5 / 3.5)
    assert summary["total_token_throughput"] == pytest.approx(25 / 3.5)
    assert (summary["mean_ttft_ms"], summary["median_ttft_ms"], summary["std_ttft_ms"]) == (1500.0, 1500.0, 500.0)
    assert summary["p99_ttft_ms"] == pytest.approx(1990.0)
    assert summary["mean_itl_ms"] == pytest.approx(2000 / 3)
    assert summary["request_goodput"] == pytest.approx(1 / 3.5)  # b's first token took 2 s
    assert summary["slo_attainment"] == 0.5
    assert (summary["max_output_tokens_per_s"], summary["max_concurrent_requests"]) == (2, 2)


def test_failed_requests_stay_in_the_denominator() -> None:
    refused = RequestRecord(id="r", arrival_s=0.0, num_prompt_tokens=5, finish_s=0.0, reason="error", error="full")
    still_open = RequestRecord(id="o", arrival_s=0.0, num_prompt_tokens=5)
    records = [record(), failed("e", "error"), failed("x", "abort"), refused, still_open]
    summary = summarize(records, goodput={"ttft": 5000})
    assert (summary["num_prompts"], summary["completed"], summary["failed"]) == (5, 1, 4)
    assert summary["slo_attainment"] == 0.2
    assert summary["total_output_tokens"] == 3
    assert summary["mean_ttft_ms"] == 1000.0


def test_vllm_key_names() -> None:
    keys = set(summarize([record()]))
    spreads = {
        f"{kind}_{name}_ms" for kind in ("mean", "median", "std", "p99") for name in ("ttft", "tpot", "itl", "e2el")
    }
    totals = [
        "duration",
        "completed",
        "failed",
        "total_input_tokens",
        "total_output_tokens",
        "request_throughput",
        "request_goodput",
    ]
    totals += [
        "output_throughput",
        "total_token_throughput",
        "max_output_tokens_per_s",
        "max_concurrent_requests",
        "num_prompts",
    ]
    assert spreads | set(totals) <= keys
    assert {"p50_ttft_ms", "p99.9_ttft_ms"} <= set(summarize([record()], percentiles=(50, 99.9)))


def test_nothing_at_all_is_none_and_not_zero() -> None:
    summary = summarize([])
    assert (summary["num_prompts"], summary["duration"], summary["request_throughput"]) == (0, 0.0, None)
    assert (summary["mean_ttft_ms"], summary["max_concurrent_requests"]) == (None, 0)
    json.dumps(summary)


def test_unknown_goodput_metric_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown goodput metric 'tpott', did you mean 'tpot'"):
        summarize([], goodput={"tpott": 1})


def test_one_that_ends_as_the_other_comes_does_not_overlap() -> None:
    first, second = record("a", 0.0, (1.0,)), record("b", 1.0, (2.0,))
    assert summarize([first, second])["max_concurrent_requests"] == 1


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=30), st.floats(0, 100))
def test_percentile_is_numpys(values: list[float], percent: float) -> None:
    assert percentile(values, percent) == pytest.approx(float(np.percentile(values, percent)), rel=1e-9, abs=1e-9)


@given(st.lists(st.lists(st.floats(0.001, 10), min_size=1, max_size=6), min_size=1, max_size=8))
def test_spreads_are_numpys(gaps_of: list[list[float]]) -> None:
    records = [record(str(i), float(i), tuple(i + np.cumsum(gaps))) for i, gaps in enumerate(gaps_of)]
    summary = summarize(records)
    ttft_ms = np.array([gaps[0] for gaps in gaps_of]) * 1000
    assert summary["mean_ttft_ms"] == pytest.approx(float(ttft_ms.mean()))
    assert summary["std_ttft_ms"] == pytest.approx(float(ttft_ms.std()), abs=1e-6)
    assert summary["p99_ttft_ms"] == pytest.approx(float(np.percentile(ttft_ms, 99)))


# ---- arrivals and the book


def test_made_up_prompts_share_beginnings_within_a_session_only() -> None:
    short = Arrival(t_s=0, id="a", prompt_len=5, max_new=1, session="s").prompt(1000)
    long = Arrival(t_s=0, id="b", prompt_len=9, max_new=1, session="s").prompt(1000)
    other = Arrival(t_s=0, id="c", prompt_len=5, max_new=1, session="t").prompt(1000)
    alone = Arrival(t_s=0, id="s", prompt_len=5, max_new=1).prompt(1000)
    assert list(short) == list(long)[:5]
    assert len({tuple(short), tuple(other), tuple(alone)}) == 3
    assert Arrival(t_s=0, id="d", prompt_ids=(3, 4), max_new=1).prompt(2) == (3, 4)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"prompt_ids": ()},
        {"prompt_ids": (1,), "prompt_len": 2},
        {"prompt_len": 1, "max_new": 0},
        {"prompt_len": 1, "t_s": -1.0},
    ],
)
def test_impossible_arrivals_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="arrival 'a'"):
        Arrival(**{"t_s": 0.0, "id": "a", "max_new": 1, **fields})  # type: ignore[arg-type]


def test_the_book_keeps_the_worst_ending_and_the_first_admission() -> None:
    book = RecordBook()
    book.arrive("a", 0.0, 100, n=3, tenant="t", session="s")
    book.admit("a", 0.5, 16)
    book.admit("a", 0.7, 99)
    book.token("a", 1, 1.0)
    book.end("a", 1.0, "stop", num_preemptions=2)
    book.end("a", 2.0, "abort", num_preemptions=1)
    (half,) = book.records()
    assert (half.reason, half.finish_s, book.is_done("a")) == (None, None, False)
    book.end("a", 3.0, "length")
    done = book.pop("a")
    assert (done.reason, done.finish_s, done.num_preemptions, done.num_cached_tokens) == ("abort", 3.0, 3, 16)
    assert (done.tenant, done.session, done.first_scheduled_s) == ("t", "s", 0.5)
    assert done.token_times_s == ((), (1.0,), ())
    assert book.records() == []


def test_the_example_of_the_readme() -> None:
    book = RecordBook()
    book.arrive("a", 0.0, 100)
    book.admit("a", 0.5, 0)
    book.token("a", 0, 1.0)
    book.end("a", 1.0, "length")
    assert summarize(book.records())["mean_ttft_ms"] == 1000.0
