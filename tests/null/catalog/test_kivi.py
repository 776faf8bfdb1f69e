# SPDX-License-Identifier: Apache-2.0
"""The experiment on a rig that measures nothing, and the figures that need none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pytest

from ziggurat.catalog.claims import report
from ziggurat.catalog.experiments.kivi import Kivi, memory_7b, relative_error, sequence_bytes, throughput_7b
from ziggurat.catalog.kivi_rig import Quality
from ziggurat.catalog.kv_rig import AttentionShape


class FakeRig:
    """Two bits cost a point, and run three times as fast as torch."""

    def quality(self, formats: Sequence[str], *, items: int, length: int, text_tokens: int) -> dict[str, Quality]:
        def made(ratio: float, difference: float) -> Quality:
            return Quality(
                perplexity_ratio=ratio,
                difference=difference,
                low=difference - 0.004,
                by_task={"a": difference},
                num_items=items,
            )

        return {"kivi4": made(1.001, 0.0), "kivi2": made(1.03, -0.01)}

    def keys(self) -> np.ndarray:
        keys = np.random.default_rng(1).standard_normal((2, 64, 64)).astype(np.float32)
        keys[:, :, :4] += 20
        return keys

    def seconds(self, shape: AttentionShape, formats: Sequence[str], *, rounds: int) -> dict[str, float]:
        return {"kivi2": 1.0, "kivi4": 1.5, "fp32": 2.0, "torch": 3.0}

    def largest_batch(self, name: str, num_tokens: int, memory_bytes: int) -> int:
        return {"bf16": 10, "kivi2": 36, "kivi4": 25}[name]

    def pool_bytes(self, name: str, num_tokens: int) -> tuple[int, int, int]:
        size = (num_tokens // 32 * 32) * 100 * 3 // 8 + (12800 if num_tokens % 32 else 0)
        return size, size, num_tokens * 200

    def is_exact(self, name: str) -> bool:
        return name == "kivi4"


def test_every_clause_is_judged() -> None:
    rows = {row["name"]: row for row in report(Kivi(cast(Any, FakeRig)), "full")}
    verdicts = {name: row["verdict"] for name, row in rows.items()}
    assert rows["task-accuracy-2-bit"]["ours"] == pytest.approx(1.4) and verdicts["task-accuracy-2-bit"] == "holds"
    assert verdicts["perplexity-2-bit"] == "misses" and verdicts["perplexity-4-bit"] == "holds"
    assert verdicts["same-bits-on-every-way"] == "misses" and rows["decode-32k-over-torch"]["ours"] == 3.0
    assert verdicts["keys-along-tokens"] == "holds" and verdicts["perplexity-without-grouped-queries"] == "pending"
    assert rows["bytes-at-4096"]["ours"] == pytest.approx((4064 * 37.5 + 12800) / (4095 * 200))


def test_llama_2_7b_is_as_the_brief_has_it() -> None:
    """80.3 GB in fp16, about 29.5 with a residual of 32 and 40 with one of 128: keys hold what is beyond whole residuals."""
    result = memory_7b("full")
    assert "fp16 80.3 GB" in result.note and result.verdict == "holds"
    assert (13.5e9 + 256 * sequence_bytes(498, 128)) / 1e9 == pytest.approx(40.0, rel=0.03)
    assert throughput_7b("full").ours > 2


def test_channels_that_stand_apart_want_groups_along_tokens() -> None:
    keys = FakeRig().keys()
    assert relative_error(keys, along_tokens=False) > 5 * relative_error(keys, along_tokens=True)
