# SPDX-License-Identifier: Apache-2.0
"""The experiment on a model of two layers: every clause has a verdict, and what needs no model is right."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.null.quantization.test_transforms import IDS, model
from ziggurat.catalog.claims import report
from ziggurat.catalog.experiments.comet import Comet, a100, stages, unpermuted_share
from ziggurat.quantization.dense import DenseCheckpoint, Entries, Ints, Linear, ReferenceDecoder


class FakeRig:
    """Counts what it is asked: perplexity n for the n-th question about linears."""

    base: DenseCheckpoint = model()
    prompts: Sequence[Ints] = [IDS]
    num_asked = 0

    def perplexity(
        self,
        checkpoint: DenseCheckpoint,
        *,
        linear: Linear | None = None,
        keys: Entries | None = None,
        values: Entries | None = None,
    ) -> float:
        if linear is None:
            return 1.0
        ReferenceDecoder(checkpoint, linear=linear).logits(IDS)  # runs on every linear
        self.num_asked += 1
        return float(self.num_asked)


def test_every_clause_has_a_verdict() -> None:
    rows = {row["name"]: row for row in report(Comet(lambda scale: FakeRig(), block=8), "quick")}
    assert rows["fmpq-over-w4a16"]["ours"] == 5 / 4 and rows["fmpq-over-w4a16"]["verdict"] == "misses"
    assert rows["w4a4-over-w4a16"]["ours"] == 3 and rows["w4a4-over-w4a16"]["verdict"] == "holds"
    assert rows["fold-changes-logits"]["verdict"] == "holds"
    assert {name for name, row in rows.items() if row["verdict"] == "pending"} == {
        "kernel-over-fp32-m1",
        "kernel-over-fp32-m256",
        "a4-over-a8-blocks",
        "stages-on-two-threads",
        "a100-end-to-end-over-w4a16",
    }


def test_what_needs_no_model() -> None:
    assert unpermuted_share()[0] == pytest.approx(1 - (1 - 1 / 32) ** 41, abs=0.02)
    assert [result.name for result in a100("full")] == [f"a100-over-fp16-batch-{m}" for m in (16, 64, 256)]
    assert a100("full")[2].ours == pytest.approx(2.75)
    order, bound = stages("full")
    assert order.ours == 3 and isinstance(bound.ours, float) and 0.9 < bound.ours <= 1
