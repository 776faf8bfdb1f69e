# SPDX-License-Identifier: Apache-2.0
"""The single-process trainer: AdamW over a curriculum of stages, stopping and resuming at step borders."""

from __future__ import annotations

import contextlib
import math
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ziggurat.clock import Clock, WallClock
from ziggurat.programs.architectures import build_program
from ziggurat.programs.program import Program
from ziggurat.training import checkpoint
from ziggurat.training.checkpoint import Position
from ziggurat.training.config import OptimizerConfig, StageConfig, TrainingConfig
from ziggurat.training.export import load_tensors
from ziggurat.training.initial import INITIALISERS
from ziggurat.training.interpreter import ProgramModel
from ziggurat.training.lowrank import new_updates
from ziggurat.training.progress import Progress
from ziggurat.training.sources import Batch, Source, make_batch

_SMOOTHING = 0.97


class Trainer:
    """One run: model, optimizer and position. `step()` does one optimizer step; `save()` writes a checkpoint.

    With an adapter in the recipe the base model's weights stay as they are, and a checkpoint holds the updates alone.

    Args:
        config: the checked recipe.
        sources: sequence sources by name.
        folder: where checkpoint and log go.
    """

    def __init__(
        self, config: TrainingConfig, sources: Mapping[str, Source], folder: Path, clock: Clock | None = None
    ) -> None:
        self.config, self.sources, self.folder = config, sources, folder
        self.clock = clock or WallClock()
        self.program: Program = build_program(dict(config.model), "train")
        self.model = ProgramModel(self.program)
        if config.adapter is None:
            self.model.load_weights(INITIALISERS[config.initial](self.program, config.seed))
        else:
            self.model.load_weights(load_tensors(Path(config.base)))
            self.model.requires_grad_(False)
            self.model.updates = new_updates(self.program, config.adapter, config.seed)
        self.trained = self.model if self.model.updates is None else self.model.updates
        self.optimizer = _adamw(self.trained, config.optimizer)
        self.position = Position()
        self._autocast_type = torch.bfloat16 if uses_bf16(config.precision) else None

    @property
    def stage(self) -> StageConfig | None:
        """The current stage, or None when the recipe is finished."""
        return self.config.stages[self.position.stage] if self.position.stage < len(self.config.stages) else None

    def resume(self) -> None:
        """Continues from the folder's checkpoint (ModelError if there is none)."""
        weights, optimizer, self.position = checkpoint.load(self.folder / checkpoint.FILE_NAME)
        if self.model.updates is None:
            self.model.load_weights(weights)
        else:
            self.model.updates.load_state_dict(weights)
        self.optimizer.load_state_dict(optimizer)

    def save(self) -> Path:
        """Writes a checkpoint atomically."""
        updates = self.model.updates
        weights = (
            {name: parameter.detach() for name, parameter in self.model.named_weights().items()}
            if updates is None
            else updates.state_dict()
        )
        return checkpoint.save(self.folder, weights, self.optimizer.state_dict(), self.position)

    def step(self) -> dict[str, float]:
        """One optimizer step. Returns the step's loss, gradient norm and learning rate."""
        stage, position, started_s = self.stage, self.position, self.clock.now()
        assert stage is not None, "the recipe is finished"
        if position.stage_tokens == 0:  # kept until here, so that log and model card have the last values of a stage
            position.accuracy, position.loss = {}, {}
        batch = make_batch(self.sources, stage, self.config.seed, position.step)
        rate = learning_rate(stage, position, self.config.optimizer.warmup_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        losses, is_right = self._backward(batch)
        norm = torch.nn.utils.clip_grad_norm_(self.trained.parameters(), self.config.optimizer.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._note(batch, losses, is_right)
        position.step += 1
        position.tokens += batch.ids.size
        position.stage_tokens += batch.ids.size
        position.train_time_s += self.clock.now() - started_s
        self._advance(stage)
        mean = float((losses * batch.weights).sum() / max(1e-9, float(batch.weights.sum())))
        return {"loss": mean, "grad_norm": float(norm), "learning_rate": rate}

    def _backward(self, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        """Gradients of the weighted mean loss; returns loss and correctness of each predicted token."""
        cast: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
        if self._autocast_type is not None:
            cast = torch.autocast("cpu", dtype=self._autocast_type)
        targets, weights = torch.from_numpy(batch.targets), torch.from_numpy(batch.weights)
        with cast:
            logits = self.model(torch.from_numpy(batch.ids), torch.from_numpy(batch.rows))
        losses = F.cross_entropy(logits.float(), targets, reduction="none")
        ((losses * weights).sum() / weights.sum().clamp_min(1e-9)).backward()
        return losses.detach().numpy(), (logits.argmax(-1) == targets).numpy()

    def _note(self, batch: Batch, losses: np.ndarray, is_right: np.ndarray) -> None:
        sequence = batch.rows // batch.ids.shape[1]
        names = np.asarray(batch.names)[sequence] if len(sequence) else np.asarray([], dtype=str)
        for name in set(names.tolist()):
            chosen = names == name
            for running, values in ((self.position.loss, losses), (self.position.accuracy, is_right)):
                mean = float(values[chosen].mean())
                running[name] = _SMOOTHING * running.get(name, mean) + (1 - _SMOOTHING) * mean

    def _advance(self, stage: StageConfig) -> None:
        position, rule = self.position, stage.advance
        is_learnt = (
            rule is not None
            and position.stage_tokens >= rule.min_tokens
            and position.accuracy.get(rule.source, 0.0) >= rule.accuracy
        )
        if is_learnt or position.stage_tokens >= stage.max_tokens:
            position.stage += 1
            position.stage_tokens = 0


def uses_bf16(precision: str) -> bool:
    """Whether matrix products run in bf16; `auto` asks the CPU, because without AVX512-BF16 it is slower than fp32."""
    if precision != "auto":
        return precision == "bf16"
    return bool(torch.cpu._is_avx512_bf16_supported())


def learning_rate(stage: StageConfig, position: Position, warmup_steps: int) -> float:
    """Linear from the stage's rate to its final one over max_tokens, times the warm-up of the run's first steps."""
    rate = stage.learning_rate
    if stage.final_learning_rate is not None:
        done = min(1.0, position.stage_tokens / stage.max_tokens)
        rate += (stage.final_learning_rate - rate) * done
    return rate * min(1.0, (position.step + 1) / max(1, warmup_steps))


def _adamw(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        fused=True,
    )


@contextlib.contextmanager
def stop_on_signals() -> Iterator[Callable[[], bool]]:
    """Yields a function that says whether SIGTERM, SIGINT or SIGUSR1 has arrived; restores the handlers afterwards.

    Only the main thread can take signals; elsewhere the function always says no.
    """
    arrived: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        arrived.append(number)

    previous = {}
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        with contextlib.suppress(ValueError):  # not the main thread
            previous[number] = signal.signal(number, note)
    try:
        yield lambda: bool(arrived)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def train_loop(
    trainer: Trainer, progress: Progress, should_stop: Callable[[], bool], max_steps: int | None = None
) -> bool:
    """Steps until the recipe ends (True), or a stop is asked for or `max_steps` are done (False). Saves at the end."""
    config, position = trainer.config, trainer.position
    saved_s = trainer.clock.now()
    done = 0
    while trainer.stage is not None and not should_stop() and (max_steps is None or done < max_steps):
        stage = trainer.stage
        result = trainer.step()
        done += 1
        if not math.isfinite(result["loss"]):
            raise FloatingPointError(f"loss is {result['loss']} at step {position.step}; the last checkpoint is whole")
        position = trainer.position
        if position.step % config.log_every_steps == 0 or trainer.stage is not stage:
            _report(progress, position, stage, result)
        if trainer.clock.now() - saved_s >= config.checkpoint_every_s or trainer.stage is not stage:
            trainer.save()
            saved_s = trainer.clock.now()
    trainer.save()
    return trainer.stage is None


def _report(progress: Progress, position: Position, stage: StageConfig, result: dict[str, float]) -> None:
    rate = position.tokens / max(1e-9, position.train_time_s)
    progress.record(
        event="step",
        step=position.step,
        tokens=position.tokens,
        stage=stage.name,
        train_time_s=round(position.train_time_s, 3),
        step_loss=round(result["loss"], 5),
        grad_norm=round(result["grad_norm"], 4),
        learning_rate=result["learning_rate"],
        loss={name: round(value, 4) for name, value in sorted(position.loss.items())},
        accuracy={name: round(value, 4) for name, value in sorted(position.accuracy.items())},
    )
    accuracy = " ".join(f"{name} {value:.0%}" for name, value in sorted(position.accuracy.items()))
    text = f"{stage.name} {position.tokens / 1e6:.2f}M tokens, {rate:.0f}/s, loss {result['loss']:.3f}, {accuracy}"
    progress.show(position.stage_tokens / stage.max_tokens, text)
