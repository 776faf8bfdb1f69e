# SPDX-License-Identifier: Apache-2.0
"""docs/compatibility.md and docs/migrating.md do not outlive the code: tests, flags, verbs and routes that they name are looked up."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

from ziggurat.cli.main import VERBS, load
from ziggurat.cli.sources import parsers_of_all_verbs

ROOT = Path(__file__).parents[2]
STATES = ("yes", "partly", "later")
FLAG = re.compile(r"--[a-z][a-z0-9-]*")
ROUTE = re.compile(r"`(/[\w/]+)`")


def rows(name: str, num_cells: int) -> list[list[str]]:
    """The rows of all tables of a page but their heads."""
    lines = (ROOT / "docs" / name).read_text(encoding="utf-8").splitlines()
    tables = [line for before, line in itertools.pairwise(lines) if line.startswith("| ") and before.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in tables]
    assert all(len(row) == num_cells for row in cells), [row for row in cells if len(row) != num_cells]
    return cells


COMPATIBILITY = rows("compatibility.md", 4)
MIGRATING = rows("migrating.md", 3)


def flags() -> set[str]:
    """Every flag of every verb."""
    return {name for parser in parsers_of_all_verbs() for name in parser.flag_names()}


def routes() -> set[str]:
    """Every path that the server's source names."""
    sources = (ROOT / "ziggurat" / "server").glob("*.py")
    return {
        path for source in sources for path in re.findall(r'@router\.\w+\(\s*"(/[\w/]+)"', source.read_text("utf-8"))
    }


@pytest.mark.parametrize("row", COMPATIBILITY, ids=lambda row: row[0])
def test_a_promise_has_a_test_that_exists(row: list[str]) -> None:
    what, here, state, test = row
    assert state in STATES
    assert (state == "later") == (test == ""), f"{what}: {state} with the test {test!r}"
    if test:
        path, _, name = test.strip("`").partition("::")
        assert re.search(rf"^(async )?def {name}\(", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE), test
        known = flags()
        unknown = [flag for flag in FLAG.findall(here) if flag not in known]
        assert state == "partly" or not unknown, f"{what} names {unknown}, which no verb has"


@pytest.mark.parametrize("row", [row for row in COMPATIBILITY if row[2] == "later"], ids=lambda row: row[0])
def test_what_is_later_is_not_there_already(row: list[str]) -> None:
    what, here, _, _ = row
    built = [flag for flag in FLAG.findall(here) if flag in flags()]
    built += [path for path in ROUTE.findall(here) if path in routes()]
    built += [verb for verb in re.findall(r"`([a-z]+)[ `]", here) if verb in VERBS]
    assert not built, f"{what} is called 'later', and {built} are there"


def test_the_walks_find_something() -> None:
    assert {"--memory", "--api-key", "--watch"} <= flags()
    assert {"/v1/models", "/v1/chat/completions", "/memory", "/health"} <= routes()
    assert len(COMPATIBILITY) > 50
    assert len(MIGRATING) > 70


@pytest.mark.parametrize("row", MIGRATING, ids=lambda row: row[0])
def test_every_flag_of_ours_exists(row: list[str]) -> None:
    theirs, ours, note = row
    assert ours, f"{theirs} has neither a flag nor 'none'"
    named = FLAG.findall(ours)
    assert [flag for flag in named if flag not in flags()] == []
    assert named or "`ziggurat " in ours or ours in ("none", "`LLM`, `SamplingParams`"), ours
    assert ours != "none" or note, f"{theirs}: nothing here, and no word why"


def test_every_flag_of_the_server_is_in_the_guide_or_ours_alone() -> None:
    """A flag that users of other servers would look for under another name is in the guide."""
    named = {flag for row in MIGRATING for flag in FLAG.findall(" ".join(row[1:]))}
    ours_alone = {
        "--help",
        "--kernels",
        "--max-body-size",
        "--no-log-requests",
        "--recall",
        "--no-trust-remote-code",
    }
    assert set(load("serve").parser().flag_names()) - named == ours_alone
