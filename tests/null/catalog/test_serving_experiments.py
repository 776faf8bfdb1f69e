# SPDX-License-Identifier: Apache-2.0
"""Sarathi-Serve and DeepSpeed-FastGen from end to end in virtual time: every clause is answered, and wrong answers are seen."""

from __future__ import annotations

from typing import Any

import pytest

from tests.null.catalog.virtual_rig import VirtualRig
from ziggurat.catalog.claims import report
from ziggurat.catalog.experiments import deepspeed_fastgen, find_experiment, sarathi_serve
from ziggurat.catalog.experiments.deepspeed_fastgen import DeepSpeedFastGen, service_level
from ziggurat.catalog.experiments.sarathi_serve import SarathiServe
from ziggurat.catalog.serving import Judged, Limit, ratio, share_identical, tuned_budget, variation
from ziggurat.scheduling.calibration import StepSample

SARATHI_CLAIMS = {
    "capacity-vs-prefill-priority": ">= 1.8",
    "capacity-vs-orca": ">= 1.5",
    "p99-tbt-at-0.8-capacity": "<= 0.4",
    "median-ttft-at-0.8-capacity": "<= 1.5",
    "token-identical": "1 to 1",
    "calibrated-token-budget": "32 to 128",
    "simulated-a100-capacity-vs-vllm": "1.8 to 2.8",
}
FASTGEN_CLAIMS = {
    "forward-size-cv": "<= 0.1",
    "forward-size-cv-prefill-priority": ">= 0.8",
    "p95-token-latency": "<= 0.45",
    "effective-throughput": ">= 1.6",
    "mean-latency": ">= 1.3",
    "throughput-vs-sarathi": "0.95 to 1.05",
    "two-replicas-throughput": ">= 1.8",
    "simulated-70b-effective-throughput": "2.0 to 2.6",
}


def rows(experiment: Any, scale: Any = "quick") -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in report(experiment, scale)}


@pytest.mark.parametrize(("slug", "claims"), [("sarathi-serve", SARATHI_CLAIMS), ("deepspeed-fastgen", FASTGEN_CLAIMS)])
def test_the_claims_are_frozen(slug: str, claims: dict[str, str]) -> None:
    experiment = find_experiment(slug)
    assert experiment is not None
    assert {claim.name: claim.target for claim in experiment.claims} == claims


def test_sarathi_holds_its_target_on_a_machine_of_straight_lines() -> None:
    rigs = [VirtualRig()]
    found = rows(SarathiServe(lambda: rigs[0]))
    assert rigs[0].is_closed
    measured = {name: row["verdict"] for name, row in found.items() if row["kind"] == "measured"}
    assert measured["token-identical"] == "holds"
    assert measured["capacity-vs-prefill-priority"] == measured["capacity-vs-orca"] == "holds"
    assert measured["p99-tbt-at-0.8-capacity"] == "holds"
    # 5 * 24 ms, of which 80 %: 96 ms - 8 ms at 0.5 ms a token.
    assert found["calibrated-token-budget"]["ours"] == 176
    assert found["calibrated-token-budget"]["verdict"] == "misses"
    assert (found["simulated-a100-capacity-vs-vllm"]["verdict"], rigs[0].num_runs > 10) == ("pending", True)


def test_tokens_that_differ_are_a_miss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sarathi_serve.SIZES, "quick", sarathi_serve.Size(num_requests=4, granularity=0.5, limit_s=9))
    found = rows(SarathiServe(lambda: VirtualRig(spoils="orca")))
    assert found["token-identical"]["verdict"] == "misses"


@pytest.mark.parametrize("experiment", [SarathiServe, DeepSpeedFastGen])
def test_a_quick_run_ends_in_time_and_says_what_it_left_out(experiment: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(deepspeed_fastgen.REQUESTS_PER_PLACE, "quick", 1)
    found = rows(experiment(lambda: VirtualRig(seconds_per_run=70)))
    left_out = [row for row in found.values() if row["verdict"] == "inconclusive"]
    assert left_out and all("120 s were over after 2 runs" in row["note"] for row in left_out)


def test_fastgen_forwards_are_constant_where_the_baselines_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(deepspeed_fastgen.REQUESTS_PER_PLACE, "quick", 2)
    found = rows(DeepSpeedFastGen(VirtualRig))
    assert found["forward-size-cv"]["verdict"] == "holds"
    assert found["forward-size-cv-prefill-priority"]["verdict"] == "holds"
    assert found["p95-token-latency"]["ours"] < 1
    assert found["throughput-vs-sarathi"]["verdict"] == "holds"
    assert found["two-replicas-throughput"]["verdict"] == "pending"


def test_a_full_run_takes_the_median_of_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(deepspeed_fastgen.REQUESTS_PER_PLACE, "full", 1)
    monkeypatch.setitem(deepspeed_fastgen.NUM_ROUNDS, "full", 2)
    rigs = [VirtualRig()]
    found = rows(DeepSpeedFastGen(lambda: rigs[0]), "full")
    assert rigs[0].num_runs == 2 * 3 + 2 * 2
    assert "inconclusive" not in {row["verdict"] for row in found.values()}


def test_the_service_level_follows_the_machine() -> None:
    samples = [StepSample(num_tokens=n, seconds=0.144 + n * 0.001) for n in (16, 64, 256)]
    assert service_level(samples, 0.05) == pytest.approx((64, 4))


def test_a_budget_that_nothing_keeps_is_the_smallest_step() -> None:
    samples = [StepSample(num_tokens=n, seconds=n * 0.001) for n in (16, 64, 256)]
    assert tuned_budget(samples, 0.1, max_num_seqs=32).max_num_batched_tokens == 96
    assert tuned_budget(samples, 0.001, max_num_seqs=32).max_num_batched_tokens == 16


def test_limits_and_ratios() -> None:
    assert [Limit(low=1.8).text, Limit(high=0.4).text, Limit(low=1, high=2).text] == [">= 1.8", "<= 0.4", "1 to 2"]
    assert Limit(low=1.8).holds(1.8) and not Limit(low=1.8).holds(1.79)
    assert [ratio(2, 1), ratio(None, 1), ratio(1, 0), ratio(0, 0)] == [2, None, float("inf"), None]
    assert [variation([5, 5, 5]), variation([5]), variation([])] == [0, 0, 0]
    assert variation([1, 3]) == 0.5
    judged = Judged(name="a", paper=None, unit="x", limit=Limit(low=1))
    assert (judged.judge(float("inf"), "", "full").ours, judged.judge(float("inf"), "", "full").verdict) == (
        "the baseline has none",
        "holds",
    )
    assert judged.judge(None, "late", "quick").verdict == "inconclusive"
    assert judged.judge(None, "late", "full").verdict == "not_run"


def test_shares_are_of_the_first_runs_requests() -> None:
    class Answers:
        def __init__(self, **answers: list[int]) -> None:
            self.answers = answers

    runs: Any = [Answers(a=[1, 2], b=[3]), Answers(a=[1, 2], b=[4]), Answers(a=[1, 2])]
    assert share_identical(runs) == 0.5
