# SPDX-License-Identifier: Apache-2.0
"""The trainer: resuming gives the uninterrupted run bit for bit, signals stop it between steps, losses fall."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from ziggurat.errors import ConfigError, ModelError
from ziggurat.programs.architectures import build_program
from ziggurat.training import checkpoint
from ziggurat.training.config import AdvanceRule, MixtureEntry, StageConfig, TrainingConfig, load_recipe
from ziggurat.training.initial import INITIALISERS
from ziggurat.training.interpreter import ProgramModel
from ziggurat.training.progress import Progress, read_log
from ziggurat.training.sources import Source, make_batch
from ziggurat.training.trainer import Trainer, learning_rate, stop_on_signals, train_loop
from ziggurat.workload.tasks import curriculum
from ziggurat.workload.tasks.layout import plain_layout

LAYOUT = plain_layout()
SOURCES: Mapping[str, Source] = {
    "copy": lambda rng, length: curriculum.dense_copy(rng, LAYOUT, length),
    "lookup": lambda rng, length: curriculum.dense_lookup(rng, LAYOUT, length, 1, 2),
}


def run(config: TrainingConfig, folder: Path, *, resume: bool = False, max_steps: int | None = None) -> Trainer:
    trainer = Trainer(config, SOURCES, folder)
    if resume:
        trainer.resume()
    progress = Progress(folder)
    train_loop(trainer, progress, lambda: False, max_steps)
    progress.close()
    return trainer


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("first_steps", [1, 5, 8])
def test_a_resumed_run_equals_the_uninterrupted_one(
    tiny: TrainingConfig, tmp_path: Path, first_steps: int, precision: str
) -> None:
    config = dataclasses.replace(tiny, precision=precision)
    whole = run(config, tmp_path / "whole")
    run(config, tmp_path / "parts", max_steps=first_steps)
    parts = run(config, tmp_path / "parts", resume=True)
    assert parts.position.step == whole.position.step == 12
    for name, weight in whole.model.named_weights().items():
        assert torch.equal(weight, parts.model.named_weights()[name]), name
    assert parts.position.accuracy == whole.position.accuracy
    states = [trainer.optimizer.state_dict()["state"] for trainer in (whole, parts)]
    for index, state in states[0].items():
        for key, value in state.items():
            assert torch.equal(value, states[1][index][key]), (index, key)
    logs = [
        [(record["step"], record["step_loss"]) for record in read_log(tmp_path / part) if record["event"] == "step"]
        for part in ("whole", "parts")
    ]
    assert logs[0] == logs[1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_stops_between_steps_with_a_checkpoint(tiny: TrainingConfig, tmp_path: Path, number: int) -> None:
    def sample(rng: np.random.Generator, length: int) -> tuple[np.ndarray, np.ndarray]:
        os.kill(os.getpid(), number)  # in the middle of the first step
        return SOURCES["copy"](rng, length)

    trainer = Trainer(tiny, {"copy": sample, "lookup": sample}, tmp_path)
    progress = Progress(tmp_path)
    before = signal.getsignal(number)
    with stop_on_signals() as should_stop:
        assert not train_loop(trainer, progress, should_stop)
    progress.close()
    assert signal.getsignal(number) is before
    assert checkpoint.load(tmp_path / checkpoint.FILE_NAME)[2].step == 1


def test_the_loss_falls(tiny: TrainingConfig, tmp_path: Path) -> None:
    """Four tokens in a fixed order are learnt in sixty steps; before, the loss is that of a uniform guess."""

    def cycle(rng: np.random.Generator, length: int) -> tuple[np.ndarray, np.ndarray]:
        ids = 300 + (np.arange(length) + int(rng.integers(4))) % 4
        return ids.astype(np.int64), np.ones(length, dtype=bool)

    stage = dataclasses.replace(tiny.stages[0], max_tokens=128 * 60, mixture=(MixtureEntry(source="cycle", share=1.0),))
    trainer = Trainer(dataclasses.replace(tiny, stages=(stage,)), {"cycle": cycle}, tmp_path)
    losses = [trainer.step()["loss"] for _ in range(60)]
    assert losses[0] == pytest.approx(np.log(1024), rel=0.02)
    assert losses[-1] < 0.1


def test_retrieval_weights_look_one_two_and_three_places_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sketched circuit before any training: three heads of layer 0 attend to fixed distances, wherever they stand."""
    program = build_program(dict(load_recipe("embedded").model), "train")
    model = ProgramModel(program)
    model.load_weights(INITIALISERS["retrieval"](program, 0))
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def spy(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: object) -> torch.Tensor:
        seen.append((q, k))
        return torch.zeros_like(q)

    monkeypatch.setattr("torch.nn.functional.scaled_dot_product_attention", spy)
    length = 700
    with torch.no_grad():
        model(torch.randint(8, 1024, (1, length), generator=torch.Generator().manual_seed(1)), torch.tensor([0]))
    q, k = seen[0]
    scores = q[0, :3] @ k[0, [0, 0, 1]].transpose(-1, -2) / 8
    shares = torch.softmax(scores.masked_fill(torch.ones(length, length).triu(1) > 0, -torch.inf), -1)
    for head, distance in enumerate((1, 2, 3)):
        means = [shares[head].diagonal(-back)[10:].mean().item() for back in range(8)]
        assert means[distance] == max(means) > 0.5, (distance, means)


def test_retrieval_weights_refuse_other_shapes(tiny: TrainingConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="initial = 'random'"):
        Trainer(dataclasses.replace(tiny, initial="retrieval"), SOURCES, tmp_path)


def test_a_stage_ends_when_learnt(tiny: TrainingConfig, tmp_path: Path) -> None:
    rule = AdvanceRule(source="lookup", accuracy=0.0, min_tokens=256)
    config = dataclasses.replace(tiny, stages=(dataclasses.replace(tiny.stages[0], advance=rule), tiny.stages[1]))
    trainer = Trainer(config, SOURCES, tmp_path)
    stages = []
    for _ in range(3):
        trainer.step()
        stages.append(trainer.position.stage)
    assert stages == [0, 1, 1]
    assert trainer.position.stage_tokens == 128


def test_the_last_values_of_a_stage_outlive_it(tiny: TrainingConfig, tmp_path: Path) -> None:
    whole = run(tiny, tmp_path)
    assert whole.stage is None
    assert set(whole.position.loss) == {"copy", "lookup"}
    last = {record["stage"]: record for record in read_log(tmp_path) if record["event"] == "step"}
    assert all(set(record["accuracy"]) == {"copy", "lookup"} for record in last.values())


def test_learning_rate_warms_up_and_falls(tiny: TrainingConfig) -> None:
    stage = tiny.stages[0]
    start, middle = checkpoint.Position(step=0), checkpoint.Position(step=100, stage_tokens=stage.max_tokens // 2)
    assert learning_rate(stage, start, warmup_steps=10) == pytest.approx(stage.learning_rate / 10)
    assert learning_rate(stage, middle, warmup_steps=10) == pytest.approx(2e-3)


def test_batches_depend_on_seed_and_step_only(tiny: TrainingConfig) -> None:
    stage = tiny.stages[0]
    first, again, other = (make_batch(SOURCES, stage, 3, step) for step in (4, 4, 5))
    assert np.array_equal(first.ids, again.ids)
    assert not np.array_equal(first.ids, other.ids)
    flat = first.ids.reshape(-1)
    assert np.array_equal(flat[first.rows + 1], first.targets)
    assert len(first.names) == 4
    assert set(first.weights.tolist()) <= {1.0, 2.0}


def test_unknown_source_and_missing_checkpoint_are_user_errors(tiny: TrainingConfig, tmp_path: Path) -> None:
    stage: StageConfig = dataclasses.replace(tiny.stages[0], mixture=(MixtureEntry(source="lokup", share=1.0),))
    with pytest.raises(ConfigError, match="did you mean 'lookup'"):
        make_batch(SOURCES, stage, 0, 0)
    with pytest.raises(ModelError, match="nothing to resume"):
        Trainer(tiny, SOURCES, tmp_path).resume()


def test_a_damaged_checkpoint_is_a_model_error(tiny: TrainingConfig, tmp_path: Path) -> None:
    trainer = Trainer(tiny, SOURCES, tmp_path)
    path = trainer.save()
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ModelError, match="cannot be read"):
        trainer.resume()
