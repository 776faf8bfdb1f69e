# SPDX-License-Identifier: Apache-2.0
"""BurstGPT from end to end in virtual time: every clause is answered, bursts are felt, flips are told from noise."""

from __future__ import annotations

from typing import Any

import pytest

from tests.null.catalog.virtual_rig import VirtualRig
from ziggurat.catalog.claims import report
from ziggurat.catalog.experiments import burstgpt, burstgpt_statistics, find_experiment
from ziggurat.catalog.experiments.burstgpt import BurstGPT, flipped_pairs
from ziggurat.scheduling.planners import PLANNERS
from ziggurat.scheduling.protocol import TokenBudget

CLAIMS = {
    "shape-recovery-20k": ("<= 0.05", "measured"),
    "ks-true-law": (">= 17", "measured"),
    "ks-fitted-bootstrap": (">= 17", "measured"),
    "gpt4-conversation-input-quantiles": ("<= 0.1", "derived"),
    "gpt4-conversation-output-quantiles": ("<= 0.1", "derived"),
    "azure-conversation-figures": ("<= 0.1", "derived"),
    "azure-code-figures": ("<= 0.1", "derived"),
    "azure-conversation-window-cv": ("1 to 1.2", "derived"),
    "azure-code-whole-trace-cv": ("11.88 to 14.52", "derived"),
    "p99-ttft-cv3-vs-cv1": (">= 2", "measured"),
    "p99-ttft-cv5-vs-cv1": ("reported", "measured"),
    "planner-rankings-that-flip": ("reported", "measured"),
    "placement-rankings-that-flip": ("reported", "simulated"),
}


def rows(experiment: Any, scale: Any = "quick") -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in report(experiment, scale)}


def test_the_claims_are_frozen() -> None:
    experiment = find_experiment("burstgpt")
    assert experiment is not None
    assert {claim.name: (claim.target, claim.kind) for claim in experiment.claims} == CLAIMS


def test_generators_and_fits_hold_without_any_data() -> None:
    for judged, (value, note) in burstgpt_statistics.statistics_findings().items():
        assert judged.limit.holds(value), f"{judged.name}: {value} ({note})"


@pytest.fixture
def no_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {
        judged: (judged.limit.low if judged.limit.low > 0 else 0.0, "") for judged in burstgpt_statistics.STATISTICS
    }
    monkeypatch.setattr(burstgpt, "statistics_findings", lambda: found)


@pytest.mark.usefixtures("no_statistics")
def test_bursts_are_felt_on_a_machine_of_straight_lines() -> None:
    rigs = [VirtualRig()]
    found = rows(BurstGPT(lambda: rigs[0]))
    assert rigs[0].is_closed
    assert found["p99-ttft-cv3-vs-cv1"]["verdict"] == "holds"
    assert found["p99-ttft-cv5-vs-cv1"]["ours"] > found["p99-ttft-cv3-vs-cv1"]["ours"] >= 2
    assert "of 1080 requests failed" in found["p99-ttft-cv3-vs-cv1"]["note"]
    ranked = found["planner-rankings-that-flip"]
    assert ranked["verdict"] == "holds" and all(name in ranked["note"] for name in PLANNERS.names())
    assert found["placement-rankings-that-flip"]["verdict"] == "pending"
    assert rigs[0].num_runs == 3 + 3 * 3 + 2 * 2 * len(PLANNERS.names())


@pytest.mark.usefixtures("no_statistics")
@pytest.mark.parametrize(
    ("seconds_per_run", "ttft", "says"),
    [(70, "inconclusive", "after 2 runs"), (8, "holds", "after 16 runs"), (5, "holds", "one round does not tell")],
)
def test_a_quick_run_ends_in_time_and_says_what_it_left_out(seconds_per_run: float, ttft: str, says: str) -> None:
    found = rows(BurstGPT(lambda: VirtualRig(seconds_per_run=seconds_per_run)))
    late = found["planner-rankings-that-flip"]
    assert late["verdict"] == "inconclusive" and "120 s were over after" in late["note"] and says in late["note"]
    assert found["p99-ttft-cv3-vs-cv1"]["verdict"] == ttft


@pytest.mark.usefixtures("no_statistics")
def test_every_law_brings_the_same_requests_at_the_same_mean_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    size = burstgpt.Size(num_requests=30, num_rounds=2, num_ranked=5, num_ranked_rounds=2, limit_s=1e9)
    monkeypatch.setitem(burstgpt.SIZES, "full", size)
    served: list[tuple[str, list[Any]]] = []

    class Watched(VirtualRig):
        def serve(self, planner: str, budget: TokenBudget, arrivals: Any) -> Any:
            served.append((planner, list(arrivals)))
            return super().serve(planner, budget, arrivals)

    found = rows(BurstGPT(Watched), "full")
    assert "inconclusive" not in {row["verdict"] for row in found.values()}
    first_round = [arrivals for _, arrivals in served[2:5]]
    assert len({tuple((a.prompt_len, a.max_new) for a in arrivals) for arrivals in first_round}) == 1
    ends = [arrivals[-1].t_s for arrivals in first_round]
    assert ends == pytest.approx([ends[0]] * 3) and first_round[0] != first_round[1]


def test_a_flip_is_one_that_every_round_agrees_on() -> None:
    def figures(poisson_a: list[float], poisson_b: list[float], bursty_a: list[float], bursty_b: list[float]) -> Any:
        return {("a", 1.0): poisson_a, ("b", 1.0): poisson_b, ("a", 3.0): bursty_a, ("b", 3.0): bursty_b}

    assert flipped_pairs(["a", "b"], figures([1, 1], [2, 2], [9, 9], [5, 5])) == ["a/b"]
    assert flipped_pairs(["a", "b"], figures([1, 1], [2, 2], [5, 5], [9, 9])) == []
    assert flipped_pairs(["a", "b"], figures([1, 3], [2, 2], [9, 9], [5, 5])) == [], "the rounds do not agree"
