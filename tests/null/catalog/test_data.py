# SPDX-License-Identifier: Apache-2.0
"""The folder of real data: found by its variable, and a claim without it can say why."""

from __future__ import annotations

from pathlib import Path

import pytest

from ziggurat.catalog.data import VARIABLE, data_file, why_missing
from ziggurat.cli.sources import DATA_VARIABLE, refuse_unknown_variables


def test_a_file_is_found_below_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "traces").mkdir()
    (tmp_path / "traces" / "a.csv").write_text("x")
    monkeypatch.delenv(VARIABLE, raising=False)
    assert data_file("traces/a.csv") is None and "not set" in why_missing("traces/a.csv")
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    assert data_file("traces/a.csv") == tmp_path / "traces" / "a.csv"
    assert data_file("traces/b.csv") is None and str(tmp_path) in why_missing("traces/b.csv")


def test_the_variable_is_no_setting_and_no_mistake() -> None:
    assert DATA_VARIABLE == VARIABLE
    refuse_unknown_variables({}, {VARIABLE: "/data"})
