# SPDX-License-Identifier: Apache-2.0
"""The table of systems, the contract of experiments, and the status that follows from result files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ziggurat.catalog import experiments
from ziggurat.catalog.claims import Claim, ClaimResult, Scale, Verdict, report
from ziggurat.catalog.experiments import find_experiment
from ziggurat.catalog.machine import commit, describe_machine
from ziggurat.catalog.render import PAGE, render
from ziggurat.catalog.results import SystemStatus, result_path, status
from ziggurat.catalog.systems import find_system, systems
from ziggurat.errors import ConfigError, InternalError
from ziggurat.registry import Registry

SECTIONS = {
    "serving": 17,
    "training": 17,
    "compression": 11,
    "constrained devices": 14,
    "agents and federated learning": 16,
    "analysis and hardware": 10,
}


def claim(name: str) -> Claim:
    return Claim(name=name, paper=None, unit="x", kind="derived", target="> 0")


class Given:
    """An experiment that answers what it was given."""

    def __init__(self, names: Sequence[str], results: Sequence[ClaimResult]) -> None:
        self.claims = tuple(claim(name) for name in names)
        self.results = results

    def run(self, scale: Scale) -> Sequence[ClaimResult]:
        return self.results


def keep(folder: Path, scale: Scale, day: int, verdicts: Sequence[Verdict], slug: str = "kivi") -> Path:
    path = result_path(folder, slug, scale, datetime(2026, 1, day, tzinfo=UTC))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"claims": [{"verdict": verdict} for verdict in verdicts]}), encoding="utf-8")
    return path


def of(folder: Path, slug: str = "kivi") -> SystemStatus:
    return next(row for row in status(folder) if row.system.slug == slug)


def test_the_table_has_85_systems() -> None:
    assert len({system.slug for system in systems()}) == 85
    assert len({system.title for system in systems()}) == 85
    counts = {name: sum(system.section == name for system in systems()) for name in SECTIONS}
    assert counts == SECTIONS
    assert all(system.rooms for system in systems())


def test_an_unknown_slug_names_the_nearest() -> None:
    assert find_system("kivi").title.startswith("KIVI")
    with pytest.raises(ConfigError, match="unknown system 'kivvi', did you mean 'kivi'"):
        find_system("kivvi")


def test_no_experiment_yet() -> None:
    assert find_experiment("marlin") is None


def test_an_experiment_is_found_by_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lasp_2.py").write_text(
        "from ziggurat.catalog.experiments import EXPERIMENTS\n"
        "class Empty:\n    claims = ()\n    def run(self, scale): return []\n"
        "EXPERIMENTS.register('lasp-2')(Empty)\n",
        encoding="utf-8",
    )
    monkeypatch.setattr(experiments, "__file__", str(tmp_path / "__init__.py"))
    monkeypatch.setattr(experiments, "__path__", [str(tmp_path)])
    monkeypatch.setattr(experiments, "EXPERIMENTS", Registry("experiment"))
    found = experiments.find_experiment("lasp-2")
    assert found is not None
    assert report(found, "quick") == []
    assert experiments.find_experiment("kivi") is None


def test_a_report_has_every_claim_in_order() -> None:
    results = [
        ClaimResult(name="b", ours=2, verdict="misses"),
        ClaimResult(name="a", ours=None, verdict="not_run", note="no disk"),
    ]
    rows = report(Given(["a", "b"], results), "full")
    assert [(row["name"], row["verdict"]) for row in rows] == [("a", "not_run"), ("b", "misses")]
    assert list(rows[0]) == ["name", "paper", "ours", "unit", "kind", "target", "verdict", "note"]


@pytest.mark.parametrize(
    ("names", "results", "says"),
    [
        (["a", "b"], [ClaimResult(name="a", ours=1, verdict="holds")], "do not pair up"),
        (["a"], [ClaimResult(name="a", ours=1, verdict="holds")] * 2, "do not pair up"),
        (["a"], [ClaimResult(name="c", ours=1, verdict="holds")], "do not pair up"),
        (["a", "a"], [ClaimResult(name="a", ours=1, verdict="holds")], "do not pair up"),
        (["a"], [ClaimResult(name="a", ours=1, verdict="inconclusive", note="noise")], "only a quick run"),
        (["a"], [ClaimResult(name="a", ours=None, verdict="pending")], "needs a note"),
        (["a"], [ClaimResult(name="a", ours=None, verdict="holds")], "without a value"),
        (["a"], [ClaimResult(name="a", ours=1, verdict="great")], "none of holds"),  # type: ignore[arg-type]
    ],
)
def test_an_experiment_that_breaks_the_contract(names: list[str], results: list[ClaimResult], says: str) -> None:
    with pytest.raises(InternalError, match=says):
        report(Given(names, results), "full")


def test_a_quick_run_may_be_inconclusive() -> None:
    results = [ClaimResult(name="a", ours=1.0, verdict="inconclusive", note="spread too wide")]
    assert report(Given(["a"], results), "quick")[0]["verdict"] == "inconclusive"


def test_no_result_is_missing(tmp_path: Path) -> None:
    assert {row.status for row in status(tmp_path)} == {"missing"}


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        (["holds", "holds"], "done"),
        (["holds", "misses"], "partial"),
        (["holds", "pending"], "partial"),
        (["holds", "not_run"], "partial"),
        ([], "partial"),
    ],
)
def test_done_is_a_full_run_where_everything_holds(tmp_path: Path, verdicts: list[Verdict], expected: str) -> None:
    keep(tmp_path, "full", 1, verdicts)
    assert of(tmp_path).status == expected
    assert of(tmp_path, "marlin").status == "missing"


def test_the_newest_full_run_counts(tmp_path: Path) -> None:
    keep(tmp_path, "quick", 1, ["holds"])
    assert of(tmp_path).status == "partial"
    keep(tmp_path, "full", 2, ["holds"])
    assert of(tmp_path).status == "done"
    keep(tmp_path, "quick", 3, ["misses"])
    assert of(tmp_path).status == "done", "a later quick run takes nothing back"
    newest = keep(tmp_path, "full", 4, ["misses", "holds"])
    row = of(tmp_path)
    assert row.status == "partial"
    assert row.newest == newest.relative_to(tmp_path).as_posix()
    assert row.verdicts == {"misses": 1, "holds": 1}


@pytest.mark.parametrize("text", ["{", "[]", '{"claims": [{"verdict": "fine"}]}', '{"claims": [1]}'])
def test_a_damaged_result_is_an_error(tmp_path: Path, text: str) -> None:
    keep(tmp_path, "full", 1, ["holds"]).write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"full\.json"):
        status(tmp_path)


def test_the_committed_page_is_the_generated_one() -> None:
    assert PAGE.read_text(encoding="utf-8") == render(status()), "run `make docs`"


def test_the_page_counts_claims(tmp_path: Path) -> None:
    keep(tmp_path, "full", 1, ["holds", "misses", "misses", "not_run"])
    page = render(status(tmp_path))
    assert "85 systems: 0 done, 1 partial, 84 missing." in page
    assert "| quantization | partial | 1 holds, 2 misses, 1 not run |" in page


def test_machine_and_commit(tmp_path: Path) -> None:
    machine = describe_machine()
    assert machine["cpu"]
    assert machine["ram_bytes"] > 2**28
    assert commit(tmp_path) == "unknown"
