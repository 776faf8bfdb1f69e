# SPDX-License-Identifier: Apache-2.0
"""Result files of ``ziggurat reproduce`` and the status that follows from them.

A run is written to ``results/systems/SLUG/YYYYMMDDTHHMMSSZ-SCALE.json``; names sort by time, so the newest needs no file date.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from ziggurat.catalog.claims import VERDICTS, Scale
from ziggurat.catalog.systems import System, systems
from ziggurat.errors import ConfigError

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "results"
"""The repository's folder of results; absent in an installed package, where every status is ``missing``."""

Status = Literal["missing", "partial", "done"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemStatus:
    """Where one system stands.

    Attributes:
        newest: the newest full run, else the newest quick one, relative to the results folder; None without any.
        verdicts: how many claims of that run have which verdict.
    """

    system: System
    status: Status
    newest: str | None
    verdicts: dict[str, int]


def result_path(folder: Path, slug: str, scale: Scale, now: datetime | None = None) -> Path:
    """Where a run that ended at ``now`` (default: this moment) is kept."""
    stamp = (now or datetime.now(UTC)).astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")
    return folder / "systems" / slug / f"{stamp}-{scale}.json"


def status(folder: Path = RESULTS) -> list[SystemStatus]:
    """The status of every system, in the order of the table.

    ``done``: the newest full run has claims and every one of them holds. ``partial``: there is a run, but not such a one.

    Raises:
        ConfigError: a result file cannot be read.
    """
    return [_status_of(system, folder) for system in systems()]


def _status_of(system: System, folder: Path) -> SystemStatus:
    runs = sorted((folder / "systems" / system.slug).glob("*.json"))
    full = [path for path in runs if path.stem.endswith("-full")]
    if not runs:
        return SystemStatus(system=system, status="missing", newest=None, verdicts={})
    newest = (full or runs)[-1]
    counts = _count(_read(newest), newest)
    # What was not run, or waits for something, is not done: the strict reading, so that nothing is done by leaving things out.
    is_done = bool(full) and set(counts) == {"holds"}
    return SystemStatus(
        system=system,
        status="done" if is_done else "partial",
        newest=newest.relative_to(folder).as_posix(),
        verdicts=counts,
    )


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read the result file {path}: {error}") from error


def _count(data: Any, path: Path) -> dict[str, int]:
    claims = data.get("claims") if isinstance(data, dict) else None
    if not isinstance(claims, list):
        raise ConfigError(f"{path} is not a result of `ziggurat reproduce`: it has no list of claims")
    counts: dict[str, int] = {}
    for claim in claims:
        verdict = claim.get("verdict") if isinstance(claim, dict) else None
        if verdict not in VERDICTS:
            raise ConfigError(f"{path}: verdict {verdict!r} is none of {', '.join(VERDICTS)}")
        counts[verdict] = counts.get(verdict, 0) + 1
    return counts
