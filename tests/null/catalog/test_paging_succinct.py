# SPDX-License-Identifier: Apache-2.0
"""Paging with succinct predictions from end to end without a model: every clause is answered, bounds are checked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count

import pytest

from ziggurat.catalog.claims import report
from ziggurat.catalog.experiments import find_experiment, paging_succinct
from ziggurat.catalog.experiments.paging_succinct import (
    JUDGED,
    Instance,
    PagingSuccinct,
    Size,
    check_bounds,
    instances,
    measure,
)
from ziggurat.catalog.object_traces import conversations_with_objects, prefix_blocks
from ziggurat.memory.eviction.flat import lfd_loads

CLAIMS = {
    "flush-when-all-0s-bound": "<= 0",
    "mark0-bound": "<= 0",
    "mark-predict-bound": "<= 0",
    "mark-predict-robust": "<= 0",
    "perfect-bits-are-lfd": "<= 0",
    "families-with-loads-at-most-0.90-of-lru": ">= 3",
    "worst-family-vs-lru": "<= 1.05",
    "lru-to-belady-gap-closed": ">= 0.3",
    "half-of-the-bits-flipped": "<= 1.1",
    "overhead-python": "<= 5",
    "overhead-cpp": "<= 1",
}


def families(size: Size) -> Iterator[tuple[str, Sequence[int], str]]:
    yield "loop", [index % 40 for index in range(800)], "a loop"
    yield "zipf", conversations_with_objects(2000, num_objects=60, mean_turns=1, exponent=1.0, seed=0), "made"


def test_the_claims_are_frozen() -> None:
    experiment = find_experiment("paging-succinct")
    assert experiment is not None
    assert {claim.name: claim.target for claim in experiment.claims} == CLAIMS


def test_every_clause_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = count()
    tiny = Size(num_instances=8, num_requests=100, num_tokens=10, max_blocks_requests=10)
    monkeypatch.setattr(paging_succinct, "SIZES", {"quick": tiny})
    rows = {row["name"]: row for row in report(PagingSuccinct(lambda: 1e-3 * next(ticks), families), "quick")}
    assert all(rows[judged.name]["verdict"] == "holds" for judged in JUDGED[:5])
    assert rows["worst-family-vs-lru"]["ours"] <= 1.05 and "zipf" in rows["lru-to-belady-gap-closed"]["note"]
    assert rows["overhead-python"]["ours"] == pytest.approx(1e-3 / 20000 * 1e6)
    assert rows["overhead-cpp"]["verdict"] == "pending"


def test_a_policy_that_breaks_its_bound_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Told that the optimum were far less than it is, every bound must break somewhere."""
    monkeypatch.setattr(paging_succinct, "lfd_loads", lambda trace, k: lfd_loads(trace, k) // 8)
    theory = check_bounds(Instance(trace=each.trace, capacity=2, share_wrong=0.0) for each in instances(8, seed=1))
    assert all(found > 0 for name, found in theory.violations.items() if name != "mark-predict-robust")


def test_families_are_compared_with_all_policies() -> None:
    family = measure(
        "zipf", conversations_with_objects(3000, num_objects=80, mean_turns=4, exponent=1.0, seed=1), "made"
    )
    assert family.capacity == 7 and min(family.loads.values()) >= family.optimum
    assert {"arc", "lfu", "sieve", "succinct", "lru"} <= set(family.loads) and "belady" in family.text


def test_traces_are_the_same_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ZIGGURAT_DATA", raising=False)
    trace, what = prefix_blocks(50)
    assert (trace, what) == prefix_blocks(50) and "ZIGGURAT_DATA is not set" in what
    assert len(set(trace)) < len(trace), "turns repeat what came before"
