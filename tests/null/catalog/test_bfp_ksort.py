# SPDX-License-Identifier: Apache-2.0
"""The experiment on a model of two layers with random weights: every clause has a verdict, and the arithmetic is right."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from tests.null.quantization.test_transforms import IDS, model
from ziggurat.catalog.claims import report
from ziggurat.catalog.experiments.bfp_ksort import BfpKsort, bfp_entries, kivi_keys, llama2_7b, ordinary_error
from ziggurat.quantization.dense import DenseCheckpoint, Entries, Ints


class FakeRig:
    """Perplexities by formula: 10 without rounding, 30 rounded, 14 rounded and sorted."""

    base: DenseCheckpoint = model()
    prompts: Sequence[Ints] = [IDS]

    def perplexity(
        self, checkpoint: DenseCheckpoint, *, keys: Entries | None = None, values: Entries | None = None
    ) -> float:
        is_sorted = any((order != np.arange(order.shape[1])).any() for order in checkpoint.orders.values())
        return 10.0 if keys is None else 14.0 if is_sorted else 30.0


def test_every_clause_has_a_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ziggurat.catalog.experiments.bfp_ksort.bfp_entries", lambda p, n: lambda layer, keys: keys)
    monkeypatch.setattr("ziggurat.catalog.experiments.bfp_ksort._bytes", lambda model, scale: _bytes(scale))
    rows = {row["name"]: row for row in report(BfpKsort(lambda scale: FakeRig()), "full")}
    assert rows["gap-recovered-n32-of-128"]["ours"] == pytest.approx(0.8)
    assert rows["gap-recovered-n64-of-128"]["verdict"] == "holds"
    assert rows["change-n128-of-128"]["verdict"] == "misses"
    assert rows["decode-attention-over-fp32"]["verdict"] == "pending"
    assert rows["fold-changes-logits"]["verdict"] == "holds"


def _bytes(scale: str):  # type: ignore[no-untyped-def]
    from ziggurat.catalog.experiments.bfp_ksort import BYTES

    return BYTES.judge(1.0, "", scale)  # type: ignore[arg-type]


def test_derived_figures() -> None:
    assert llama2_7b("full").ours == pytest.approx(8.125 / 4.125)
    assert ordinary_error(128)[0] == pytest.approx(1, rel=0.01)


def test_kivi_keys_leave_a_group_that_is_not_full() -> None:
    keys = np.random.default_rng(1).standard_normal((40, 2, 8)).astype(np.float32)
    shown = kivi_keys(0, keys)
    assert (shown[32:] == keys[32:]).all() and 0 < np.abs(shown - keys).max() < 0.5
    assert bfp_entries(8, 8)(0, keys).shape == keys.shape
