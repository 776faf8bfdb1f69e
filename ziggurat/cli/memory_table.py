# SPDX-License-Identifier: Apache-2.0
"""The ledger as people read it: the table that ``serve`` prints when the model is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ziggurat.cli.output import table
from ziggurat.units import format_bytes

BUDGET_TIER = "ram"


def memory_table(report: Mapping[str, Any]) -> str:
    """The top-level rows of an engine's memory report, the budget below them, and what lies outside of it last.

    Args:
        report: `EngineInterface.memory`.
    """
    top = [row for row in report["ledger"] if row["depth"] == 0]
    inside = [row for row in top if row["tier"] == BUDGET_TIER]
    outside = [row for row in top if row["tier"] != BUDGET_TIER]
    budget = sum(row["num_bytes"] for row in inside)
    lines = [("memory", "bytes", "what it is")]
    lines += [_line(row) for row in inside]
    lines.append(("budget", format_bytes(budget), "all of the above: what the process may add over its baseline"))
    lines += [_line(row) for row in outside]
    return table(lines, right=(1,))


def _line(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return row["kind"], format_bytes(row["num_bytes"]), f"{row['owner']}: {row['why']}" if row["why"] else row["owner"]
