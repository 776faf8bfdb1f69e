# SPDX-License-Identifier: Apache-2.0
"""docs/architecture.md against the tree: every path exists, the ten stations are there in order, every room is on the drawing."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
STATIONS = (
    "route",
    "request schema and error table",
    "tokenizer and template",
    "engine (add, step, abort)",
    "sequence state",
    "planner (decide)",
    "memory (blocks, prefix forest, ledger)",
    "executor (run)",
    "Program and its kernels",
    "sampler and detokeniser",
)
_PATH = re.compile(r"`((?:ziggurat|tests|docs|native|benchmarks)/[\w./-]*)`")


def station_rows() -> list[list[str]]:
    lines = [line.strip("|").split("|") for line in PAGE.splitlines() if re.match(r"\| \d+ \|", line)]
    return [[cell.strip() for cell in line] for line in lines]


def test_every_path_exists() -> None:
    paths = _PATH.findall(PAGE)
    assert len(paths) > 25
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_the_ten_stations_are_listed_in_order() -> None:
    rows = station_rows()
    assert [row[0] for row in rows] == [str(number) for number in range(1, 11)]
    assert tuple(row[1] for row in rows) == STATIONS
    assert all(_PATH.findall(row[2]) for row in rows)


def test_every_room_is_on_the_drawing() -> None:
    drawing = PAGE.split("```")[1]
    rooms = [path.parent.name for path in (ROOT / "ziggurat").glob("*/__init__.py")]
    ground = [path.stem for path in (ROOT / "ziggurat").glob("*.py") if not path.name.startswith("__")]
    assert [name for name in [*rooms, *ground] if not re.search(rf"\b{name}\b", drawing)] == []
