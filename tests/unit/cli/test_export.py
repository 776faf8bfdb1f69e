# SPDX-License-Identifier: Apache-2.0
"""``ziggurat export``: the verb, what it prints, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.checkpoints import write_checkpoint
from ziggurat.cli.main import main


def test_it_writes_and_says_what(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, path = write_checkpoint(tmp_path / "model"), tmp_path / "out.gguf"
    arguments = ["export", str(folder), "--gguf", str(path), "--type", "q8_0"]
    assert main([*arguments, "--format", "json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["num_bytes"] == path.stat().st_size
    assert (result["type"], result["num_tensors"], result["num_fallback_tensors"]) == ("q8_0", 30, 0)
    assert main(arguments) == 0
    assert capsys.readouterr().out.startswith(f"wrote {path}: ")


def test_what_is_missing_or_unknown_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(write_checkpoint(tmp_path))]) == 2
    assert "--gguf FILE" in capsys.readouterr().err
    assert main(["export", str(tmp_path), "--gguf", str(tmp_path / "x.gguf"), "--type", "q8"]) == 2
    assert "did you mean 'q8_0'" in capsys.readouterr().err
    assert main(["export", str(write_checkpoint(tmp_path / "m", "gemma3")), "--gguf", str(tmp_path / "x.gguf")]) == 1
    assert capsys.readouterr().err.count("\n") == 1
