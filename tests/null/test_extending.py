# SPDX-License-Identifier: Apache-2.0
"""``docs/extending.md`` is what the source says: quotes are verbatim, its code runs, its table has every registry."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python ?([^\n]*)\n(.*?)```", TEXT, re.DOTALL)
QUOTES = [(path, code) for path, code in BLOCKS if path]


@pytest.mark.parametrize(("path", "code"), QUOTES, ids=[path for path, _ in QUOTES])
def test_quotes_are_verbatim(path: str, code: str) -> None:
    assert code in (ROOT / path).read_text(encoding="utf-8")


def test_the_code_runs() -> None:
    """Top to bottom in a process of its own, because it registers what the others must not see."""
    code = "\n".join(code for path, code in BLOCKS if not path)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert code.count("assert") >= 3


def test_the_table_has_every_registry_and_what_it_names_exists() -> None:
    rows = re.findall(r"^\| ([a-z -]+) \| `([A-Z_]+)` \| `([^`]+)` \| `([^`]+)`", TEXT, re.MULTILINE)
    found = set()
    for path in (ROOT / "ziggurat").rglob("*.py"):
        for name, kind in re.findall(
            r"^([A-Z_]+): Registry\[.*\] = Registry\(\"([^\"]+)\"\)", path.read_text(encoding="utf-8"), re.MULTILINE
        ):
            found.add((kind, name, path.relative_to(ROOT).as_posix()))
    assert {row[:3] for row in rows} == found, "docs/extending.md has a row per registry"
    assert [row[3] for row in rows if not (ROOT / row[3]).is_file()] == []


def test_paths_that_the_page_names_exist() -> None:
    named = re.findall(r"`((?:ziggurat|tests|docs)/[\w./-]+)`", TEXT)
    assert [path for path in named if not (ROOT / path).exists() and "SLUG" not in path] == []
