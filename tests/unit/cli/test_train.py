# SPDX-License-Identifier: Apache-2.0
"""``train``: flags reach the trainer, and what it leaves behind is printed. The trainer itself is tested in its own room."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ziggurat.cli.main import main
from ziggurat.training.config import TrainingConfig
from ziggurat.training.run import TrainingResult


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[TrainingConfig, Path, dict[str, Any]]]:
    """What the trainer was called with; it ends at once, finished unless it was told how many steps to take."""
    calls: list[tuple[TrainingConfig, Path, dict[str, Any]]] = []

    def run_training(config: TrainingConfig, folder: Path, **rest: Any) -> TrainingResult:
        calls.append((config, folder, rest))
        is_finished = rest["max_steps"] is None
        return TrainingResult(
            is_finished=is_finished,
            model_folder=folder / "model" if is_finished else None,
            checkpoint_path=folder / "checkpoint.pt",
            step=12,
            tokens=3456,
            held_out={"prose": 2.5} if is_finished else None,
        )

    monkeypatch.setattr("ziggurat.training.run.run_training", run_training)
    return calls


def test_flags_reach_the_trainer(calls: list[Any], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    argv = [
        "train",
        "--recipe",
        "tiny",
        "--text",
        "a.txt",
        "b.txt",
        "--out",
        str(tmp_path),
        "--resume",
        "--threads",
        "1",
    ]
    assert main([*argv, "--format", "json"]) == 0
    ((config, folder, rest),) = calls
    assert config.texts == ("a.txt", "b.txt")
    assert config.num_threads == 1
    assert folder == tmp_path
    assert rest == {"resume": True, "max_steps": None}
    assert json.loads(capsys.readouterr().out) == {
        "is_finished": True,
        "model_folder": str(tmp_path / "model"),
        "checkpoint_path": str(tmp_path / "checkpoint.pt"),
        "num_steps": 12,
        "num_tokens": 3456,
        "held_out_nats_per_token": {"prose": 2.5},
    }


def test_what_people_read(calls: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--recipe", "tiny"]) == 0
    assert capsys.readouterr().out == (
        "3,456 tokens in 12 steps; the model is in runs/tiny/model\nheld-out loss on prose: 2.500 nats per token\n"
    )
    assert main(["train", "--recipe", "tiny", "--max-steps", "12"]) == 0
    assert capsys.readouterr().out == (
        "3,456 tokens in 12 steps; stopped, --resume goes on from runs/tiny/checkpoint.pt\n"
    )


def test_an_unknown_recipe_names_the_nearest(calls: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--recipe", "tinny"]) == 1
    assert "no recipe 'tinny', did you mean 'tiny'?" in capsys.readouterr().err
    assert not calls
