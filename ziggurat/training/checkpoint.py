# SPDX-License-Identifier: Apache-2.0
"""Training checkpoints: one file with weights, optimizer state and position, written whole or not at all."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ziggurat.errors import ModelError

FILE_NAME = "checkpoint.pt"


@dataclass(slots=True, kw_only=True)
class Position:
    """Where a run stands; all that decides which batch comes next.

    Attributes:
        step: optimizer steps done.
        tokens: tokens seen, all stages.
        stage: index of the current stage.
        stage_tokens: tokens seen in it.
        accuracy: running accuracy per source within the stage.
        loss: running loss per source, nats per counted token.
        train_time_s: seconds spent in steps, all parts of the run.
    """

    step: int = 0
    tokens: int = 0
    stage: int = 0
    stage_tokens: int = 0
    accuracy: dict[str, float] = field(default_factory=dict)
    loss: dict[str, float] = field(default_factory=dict)
    train_time_s: float = 0.0


def save(folder: Path, weights: dict[str, Tensor], optimizer: dict[str, Any], position: Position) -> Path:
    """Writes `folder/checkpoint.pt`; a crash leaves the previous one whole. Keeps the one before as `previous.pt`."""
    folder.mkdir(parents=True, exist_ok=True)
    target, temporary = folder / FILE_NAME, folder / (FILE_NAME + ".tmp")
    state = {"weights": weights, "optimizer": optimizer, "position": dataclasses.asdict(position), "version": 1}
    with temporary.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    if target.exists():
        os.replace(target, folder / "previous.pt")
    os.replace(temporary, target)
    return target


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any], Position]:
    """Weights, optimizer state and position of a checkpoint file.

    Raises:
        ModelError: the file is absent, damaged or of another version.
    """
    if not path.is_file():
        raise ModelError(f"{path} does not exist: nothing to resume; start without --resume")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file
        raise ModelError(f"{path} cannot be read as a checkpoint: {error}") from error
    if not isinstance(state, dict) or state.get("version") != 1:
        raise ModelError(f"{path} is not a training checkpoint of this version")
    return state["weights"], state["optimizer"], Position(**state["position"])
