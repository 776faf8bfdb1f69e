# SPDX-License-Identifier: Apache-2.0
"""``ziggurat systems``: every system of the literature and where it stands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ziggurat.catalog.results import SystemStatus, status
from ziggurat.cli.flags import Parser
from ziggurat.cli.output import add_output_flags, emit, table


def parser() -> Parser:
    """Its flags."""
    parser = Parser("ziggurat systems", "List the systems of the literature; status follows from the newest results.")
    add_output_flags(parser)
    return parser


def run(argv: Sequence[str]) -> int:
    """Print one row per system."""
    namespace = parser().parse(argv)
    rows = status()
    emit(namespace, [as_json(row) for row in rows], lambda: as_text(rows))
    return 0


def as_json(row: SystemStatus) -> dict[str, Any]:
    """One row for programs."""
    return {
        "slug": row.system.slug,
        "title": row.system.title,
        "rooms": list(row.system.rooms),
        "section": row.system.section,
        "status": row.status,
        "newest": row.newest,
        "verdicts": row.verdicts,
    }


def as_text(rows: Sequence[SystemStatus]) -> str:
    """The table for people, with the counts below it."""
    lines = [("slug", "status", "section", "title")]
    lines += [(row.system.slug, row.status, row.system.section, _short(row.system.title)) for row in rows]
    counts = ", ".join(f"{sum(row.status == name for row in rows)} {name}" for name in ("done", "partial", "missing"))
    return f"{table(lines)}\n\n{len(rows)} systems: {counts}"


def _short(title: str, width: int = 72) -> str:
    return title if len(title) <= width else f"{title[: width - 2].rstrip()} .."
