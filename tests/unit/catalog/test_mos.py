# SPDX-License-Identifier: Apache-2.0
"""The experiment on a rig that trains nothing: claims and verdicts."""

from __future__ import annotations

from typing import Any, cast

import pytest

from ziggurat.catalog.claims import report
from ziggurat.catalog.experiments.mos import Mos, seven_billion

LOSSES = {"lora-16": 2.0, "lora-2": 3.0, "mos": 2.03, "without-sharding": 2.02}


class FakeRig:
    """Losses by what the configuration says."""

    def model_config(self) -> dict[str, Any]:
        return {"num_hidden_layers": 6}

    def train(self, config: Any, seed: int, num_steps: int, tokens: int, rate: float) -> Any:
        from ziggurat.catalog.mos_rig import Trained, variants

        name = next(name for name, each in variants(6).items() if each == config)
        return Trained(losses={"a": LOSSES.get(name, 2.5) + 0.01 * seed}, step_s=1.1 if name == "mos" else 1.0)

    def resident(self, config: Any, num_adapters: int) -> int:
        return 75 if config.kind == "mos" else 10

    def paging(self, config: Any, num_adapters: int, num_requests: int) -> tuple[float, float]:
        return 0.5, 0.01

    def assemble_s(self, hidden: int, num_layers: int) -> float:
        return 0.003


def test_the_bytes_of_a_thousand_users() -> None:
    result = seven_billion("full")
    assert result.ours == 8.0 and "320 GB of LoRA 64, 40 GB" in result.note


def test_a_quick_run_trains_nothing_and_says_so() -> None:
    rows = {row["name"]: row for row in report(Mos(cast(Any, FakeRig)), "quick")}
    assert rows["loss-over-lora-16"]["verdict"] == "inconclusive"
    assert rows["adapters-in-the-same-memory"]["ours"] == 7.5
    assert rows["assemble-one-adapter"]["verdict"] == "misses"


def test_a_full_run_judges_every_clause() -> None:
    rows = {row["name"]: row for row in report(Mos(cast(Any, FakeRig)), "full")}
    assert rows["loss-over-lora-16"]["ours"] == pytest.approx(2.05 / 2.02)
    assert rows["gap-to-lora-2-closed"]["ours"] == pytest.approx(0.97)
    assert rows["without-sharding"]["verdict"] == "misses" and rows["without-subsets"]["verdict"] == "holds"
    assert rows["step-over-lora-of-equal-rank"]["ours"] == pytest.approx(1.1)
