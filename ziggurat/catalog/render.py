# SPDX-License-Identifier: Apache-2.0
"""Writes ``docs/systems.md`` from the table of systems and the newest results: ``python -m ziggurat.catalog.render``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ziggurat.catalog.claims import VERDICTS
from ziggurat.catalog.results import RESULTS, ROOT, SystemStatus, status

PAGE = ROOT / "docs" / "systems.md"

_HEAD = """# Systems

The publications that Ziggurat builds on. `ziggurat reproduce SLUG` re-runs the claims of one of them and prints, per claim, what the
paper says, what was found here, how (measured, simulated or derived) and the verdict. A system is *done* when every claim of its
newest full run holds, *partial* when there is a run that does not reach that, *missing* when there is none.

This page is generated from `ziggurat/catalog/systems.toml` and `results/` by `make docs`; do not edit it.
"""


def render(rows: Sequence[SystemStatus]) -> str:
    """The page as Markdown."""
    counts = {name: sum(row.status == name for row in rows) for name in ("done", "partial", "missing")}
    lines = [_HEAD, f"{len(rows)} systems: " + ", ".join(f"{number} {name}" for name, number in counts.items()) + "."]
    for section in dict.fromkeys(row.system.section for row in rows):
        lines += [
            f"\n## {section[0].upper()}{section[1:]}\n",
            "| slug | title | rooms | status | claims |",
            "|---|---|---|---|---|",
        ]
        lines += [_line(row) for row in rows if row.system.section == section]
    return "\n".join(lines) + "\n"


def _line(row: SystemStatus) -> str:
    system = row.system
    claims = ", ".join(f"{row.verdicts[name]} {name.replace('_', ' ')}" for name in VERDICTS if name in row.verdicts)
    return f"| {system.slug} | {system.title} | {', '.join(system.rooms)} | {row.status} | {claims} |"


def main(page: Path = PAGE, results: Path = RESULTS) -> None:
    """Write the page."""
    page.write_text(render(status(results)), encoding="utf-8")
    print(f"wrote {page}")


if __name__ == "__main__":
    main()
