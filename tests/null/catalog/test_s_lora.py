# SPDX-License-Identifier: Apache-2.0
"""The experiment about S-LoRA on a rig without a model: what is served, in which order, and how it is judged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from ziggurat.catalog.claims import report
from ziggurat.catalog.experiments.s_lora import SLora
from ziggurat.catalog.lora_rig import AdapterRequest, zipf_requests


class FakeRig:
    """Seconds by rule; notes what was asked of it."""

    def __init__(self, num_adapters: int, *, rank: int | None = None) -> None:
        self.num_adapters, self.rank, self.calls = num_adapters, rank, []  # type: ignore[var-annotated]
        made.append(self)

    def serve(self, requests: Sequence[AdapterRequest]) -> float:
        self.calls.append(requests)
        distinct = len({each.adapter for each in requests})
        is_base = requests[0].adapter is None
        return 1.0 if is_base else 1.2 + 0.0005 * distinct

    def serve_swapping(self, requests: Sequence[AdapterRequest]) -> float:
        return 6.0

    def close(self) -> None:
        self.calls.append([])


made: list[Any] = []


def test_claims_are_judged_by_what_was_served() -> None:
    made.clear()
    rows = {row["name"]: row for row in report(SLora(FakeRig, lambda *_: (1e-5, 2e-5)), "quick")}  # type: ignore[arg-type]
    assert rows["throughput-1000-over-5"]["verdict"] == "holds"
    assert rows["over-merge-and-swap-at-100"]["ours"] == pytest.approx(6.0 / 1.22, rel=0.02)
    assert rows["overhead-at-rank-16"]["ours"] == pytest.approx(1 - 1 / 1.2, rel=0.02)
    assert rows["mbgmv-over-padded-bmm"]["ours"] == 2
    assert {
        rows[name]["verdict"] for name in ("unified-pool-batch", "tensor-parallel-bytes", "a100-curve-5-to-2000")
    } == {"pending"}
    assert [(rig.num_adapters, rig.rank) for rig in made] == [(1000, None), (1, 16)]
    assert all(rig.calls[-1] == [] for rig in made), "every rig is closed"


def test_loads_differ_in_their_adapters_only() -> None:
    few, many = zipf_requests(300, 5, seed=7), zipf_requests(300, 1000, seed=7)
    for a, b in zip(few, many, strict=True):
        assert (a.prompt_ids, a.output_tokens) == (b.prompt_ids, b.output_tokens)
    assert {each.adapter for each in few} == set(range(5))
    counts = [sum(each.adapter == number for each in many) for number in (0, 9)]
    assert counts[0] > 3 * counts[1] and len({each.adapter for each in many}) > 80
