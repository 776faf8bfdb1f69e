# SPDX-License-Identifier: Apache-2.0
"""``systems`` and ``reproduce`` from the outside: what is printed, where, and with which exit code."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from ziggurat.catalog.claims import Claim, ClaimResult, Scale
from ziggurat.catalog.experiments import EXPERIMENTS
from ziggurat.cli import reproduce
from ziggurat.cli.main import main
from ziggurat.registry import Registry


class Copy:
    """An experiment with one measured claim."""

    claims = (Claim(name="speed", paper=1.4, unit="x", kind="measured", target=">= 1.1"),)

    def run(self, scale: Scale) -> Sequence[ClaimResult]:
        return [
            ClaimResult(name="speed", ours=1.23456, verdict="holds", note=f"median of {5 if scale == 'full' else 1}")
        ]


@pytest.fixture
def one_experiment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """``kivi`` is built, and results go to a folder of the test."""
    registry: Registry[type[Copy]] = Registry("experiment")
    registry.register("kivi")(Copy)
    monkeypatch.setattr("ziggurat.catalog.experiments.EXPERIMENTS", registry)
    monkeypatch.setattr(reproduce, "RESULTS", tmp_path)
    return tmp_path


def test_systems_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["systems", "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 85
    assert {row["status"] for row in rows} <= {"missing", "partial", "done"}
    assert set(rows[0]) == {"slug", "title", "rooms", "section", "status", "newest", "verdicts"}


def test_systems_as_text_into_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "systems.txt"
    assert main(["systems", "--output", str(path)]) == 0
    text = path.read_text(encoding="utf-8")
    assert "kivi" in text
    assert "85 systems: " in text
    assert capsys.readouterr().out == ""


def test_an_output_file_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["systems", "--output", str(tmp_path / "no" / "such" / "folder")]) == 1
    assert "cannot write" in capsys.readouterr().err


def test_a_system_that_is_not_built(capsys: pytest.CaptureFixture[str]) -> None:
    assert "marlin" not in EXPERIMENTS
    assert main(["reproduce", "marlin"]) == 1
    captured = capsys.readouterr()
    assert "marlin (MARLIN: " in captured.err
    assert "is not built yet; see `ziggurat systems`" in captured.err
    assert captured.out == ""


def test_an_unknown_system_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "sarathi"]) == 1
    assert "unknown system 'sarathi', did you mean 'sarathi-serve'?" in capsys.readouterr().err


def test_the_contract_of_reproduce(one_experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "kivi", "--scale", "full", "--format", "json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result) == {"system", "scale", "commit", "machine", "claims"}
    assert result["system"] == "kivi"
    assert result["machine"]["num_cores"] >= 1
    assert result["claims"] == [
        {
            "name": "speed",
            "paper": 1.4,
            "ours": 1.23456,
            "unit": "x",
            "kind": "measured",
            "target": ">= 1.1",
            "verdict": "holds",
            "note": "median of 5",
        }
    ]
    assert not list(one_experiment.iterdir()), "nothing is kept without --record"


def test_the_table_and_the_record(one_experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "kivi", "--record"]) == 0
    out = capsys.readouterr().out
    assert "speed  1.4    1.235  x     measured  >= 1.1  holds" in out
    assert "speed: median of 1" in out
    (kept,) = (one_experiment / "systems" / "kivi").iterdir()
    assert kept.name.endswith("Z-quick.json")
    assert json.loads(kept.read_text(encoding="utf-8"))["claims"][0]["verdict"] == "holds"
