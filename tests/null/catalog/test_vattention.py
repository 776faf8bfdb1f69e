# SPDX-License-Identifier: Apache-2.0
"""The experiment on a rig that measures nothing: claims, verdicts, and the counts that need no clock."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import pytest

from ziggurat.catalog.claims import report
from ziggurat.catalog.experiments.vattention import VAttention, batch_over_static, p99, waste
from ziggurat.catalog.virtual_rig import chat_lengths


class FakeRig:
    """Virtual memory at full speed, maps that cost a fifth of a step."""

    def prefill_seconds(self, space: str, num_tokens: int) -> float:
        return {"static": 1.0, "gathered": 1.5, "virtual": 1.01}[space]

    def step_seconds(self, mapping: str, *, num_seqs: int, context: int, num_steps: int) -> list[float]:
        spike = {"before": 1.0, "async": 1.0, "sync": 1.3}[mapping]
        return [spike if step % 64 == 0 else 1.0 for step in range(num_steps)]

    def committed(self, lengths: Sequence[int]) -> tuple[int, int, int]:
        return 150, 100, 100

    def shared_bytes(self, num_seqs: int, prefix_groups: int) -> tuple[int, int]:
        return 48, 24


def test_every_clause_has_a_verdict() -> None:
    rows = {row["name"]: row for row in report(VAttention(cast(Any, FakeRig)), "quick")}
    assert rows["prefill-over-gathered"]["ours"] == pytest.approx(1.5 / 1.01)
    assert rows["committed-over-paged"]["ours"] == 0.5
    assert rows["shared-prefix-bytes"]["ours"] == 2
    verdicts = {name: row["verdict"] for name, row in rows.items()}
    assert verdicts.pop("shared-prefix-bytes") == "misses"
    assert verdicts.pop("a100-tokens-over-paged-kernels") == "pending"
    assert set(verdicts.values()) == {"holds"}


def test_memory_follows_the_formula_and_beats_full_length() -> None:
    assert waste("quick").ours == 0.0
    found = batch_over_static("quick").ours
    assert isinstance(found, float) and found > 4


def test_lengths_are_the_same_every_time_and_bounded() -> None:
    lengths = chat_lengths(2000, seed=1)
    assert lengths == chat_lengths(2000, seed=1) and max(lengths) <= 4096
    assert 400 < sum(lengths) / len(lengths) < 600


def test_p99() -> None:
    assert p99([1.0] * 99 + [5.0]) == 5.0 and p99([2.0]) == 2.0
