# SPDX-License-Identifier: Apache-2.0
"""docs/memory-pains.md: all 25 are there, every state is known, and every named test exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (ROOT / "docs" / "memory-pains.md").read_text(encoding="utf-8").splitlines()
    if re.match(r"\| \d+ \|", line)
]


def test_all_of_them_are_there() -> None:
    assert [row[0] for row in ROWS] == [str(number) for number in range(1, 26)]
    assert all(len(row) == 6 and row[4] in ("yes", "partly", "later") for row in ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[1][:40])
def test_the_named_test_exists(row: list[str]) -> None:
    state, test = row[4], row[5].strip("`")
    assert (state == "later") == (not test)
    if test:
        path, _, name = test.partition("::")
        assert re.search(rf"^(async )?def {name}\(", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE), test
