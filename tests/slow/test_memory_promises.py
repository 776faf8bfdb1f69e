# SPDX-License-Identifier: Apache-2.0
"""The budget holds, measured from outside in fresh processes. Full matrices: ``benchmarks/planned_memory.py`` and ``budget_runs.py``.

Pss counts a shared library page in parts, so other processes that start or end meanwhile move the figures: run this tier alone.
"""

from __future__ import annotations

import pytest

from benchmarks.budget_runs import watch, write_checkpoint
from benchmarks.planned_memory import MIB, measure


@pytest.mark.parametrize(
    ("shape", "context_tokens"), [("4m", 256), ("4m", 1024), ("mistral-window", 1024), ("135m", 256)]
)
def test_planned_and_measured_bytes_agree(shape, context_tokens):
    row = measure(shape, context_tokens)
    assert row["running"] == row["batch"], "the planned batch was not there at once"
    assert row["is_within"], row
    assert row["is_inside_budget"], row


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_random_load_stays_inside_its_budget(seed):
    peak_bytes, lines = watch("--load", str(seed))
    assert lines[-1]["requests"] > 10
    assert peak_bytes - lines[0]["baseline_bytes"] <= lines[0]["budget_bytes"]


def test_loading_peaks_at_the_weights_and_one_staging_buffer(tmp_path):
    write_checkpoint(tmp_path)
    peak_bytes, (facts,) = watch("--loading", str(tmp_path))
    allowed_bytes = facts["weight_bytes"] + max(int(0.15 * facts["weight_bytes"]), 64 * MIB)
    assert peak_bytes - facts["baseline_bytes"] <= allowed_bytes
