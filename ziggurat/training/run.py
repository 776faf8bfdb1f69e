# SPDX-License-Identifier: Apache-2.0
"""A whole training run: tokenizer, sources, trainer, held-out loss, export. The command line adds nothing to this."""

from __future__ import annotations

import contextlib
import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer

from ziggurat.engine.resolve import resolve_folder
from ziggurat.errors import ConfigError
from ziggurat.programs.architectures import build_program
from ziggurat.programs.checkpoint import match_program, read_folder
from ziggurat.programs.config import load_config
from ziggurat.programs.gguf.header import is_gguf
from ziggurat.training.config import TrainingConfig, check
from ziggurat.training.evaluate import held_out_loss
from ziggurat.training.export import RunSummary, export_model
from ziggurat.training.generated import build_sources
from ziggurat.training.lowrank import save_adapter
from ziggurat.training.progress import Progress, write_loss_curve
from ziggurat.training.tokenizer import prose_corpus, save_tokenizer, train_tokenizer
from ziggurat.training.trainer import Trainer, stop_on_signals, train_loop
from ziggurat.workload.tasks.layout import SPECIAL_TOKENS


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingResult:
    """What a run left behind.

    Attributes:
        is_finished: False after a signal; `resume=True` goes on from there.
        model_folder: the exported Hugging Face folder, or the adapter's; None if the run was stopped.
        checkpoint_path: the newest checkpoint.
        step, tokens: optimizer steps and tokens since the very start.
        held_out: mean loss per text source, nats per token; None if the run was stopped.
    """

    is_finished: bool
    model_folder: Path | None
    checkpoint_path: Path
    step: int
    tokens: int
    held_out: dict[str, float] | None


def run_training(
    config: TrainingConfig, folder: Path, *, resume: bool = False, max_steps: int | None = None
) -> TrainingResult:
    """Trains by a recipe and exports to `folder/model`.

    SIGTERM, SIGINT and SIGUSR1 finish the step, write a checkpoint and return with `is_finished=False`.

    Args:
        folder: gets checkpoint.pt, tokenizer/, log.jsonl, the loss curve and model/.
        resume: continue from the folder's checkpoint; the continued run equals the uninterrupted one.
        max_steps: stop after that many steps of this call.

    Raises:
        ConfigError: the recipe cannot work, or a checkpoint is there and `resume` was not asked for.
        ModelError: nothing to resume, or the checkpoint is damaged.
    """
    check(config)
    if config.base:
        config = with_base(config)
        check(config)
    _check_texts(config)
    if not resume and (folder / "checkpoint.pt").exists():
        raise ConfigError(
            f"{folder} already holds a checkpoint: pass resume (--resume) to go on, or name another folder"
        )
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    tokenizer = load_or_make_tokenizer(config, folder)
    trainer = Trainer(config, build_sources(tokenizer, config.texts), folder)
    if resume:
        trainer.resume()
    progress = Progress(folder)
    progress.record(event="start", recipe=config.name, step=trainer.position.step, tokens=trainer.position.tokens)
    with contextlib.closing(progress), stop_on_signals() as should_stop:
        is_finished = train_loop(trainer, progress, should_stop, max_steps)
        position = trainer.position
        progress.record(event="stop", is_finished=is_finished, step=position.step, tokens=position.tokens)
    write_loss_curve(folder)
    held_out, model_folder = None, None
    if is_finished:
        held_out = held_out_loss(trainer.model, tokenizer, config.texts)
        model_folder = _export(trainer, config, tokenizer, folder, held_out)
    return TrainingResult(
        is_finished=is_finished,
        model_folder=model_folder,
        checkpoint_path=folder / "checkpoint.pt",
        step=position.step,
        tokens=position.tokens,
        held_out=held_out,
    )


def _export(
    trainer: Trainer, config: TrainingConfig, tokenizer: Tokenizer, folder: Path, held_out: dict[str, float]
) -> Path:
    """Write what was trained; returns where."""
    if trainer.model.updates is not None:
        save_adapter(trainer.model.updates, folder / "adapter", config.base)
        return folder / "adapter"
    summary = RunSummary(recipe=config.name, position=trainer.position, held_out=held_out)
    export_model(trainer.model, config, tokenizer, folder / "model", summary)
    return folder / "model"


def with_base(config: TrainingConfig) -> TrainingConfig:
    """The recipe with the base model's folder, configuration and tokenizer.

    Raises:
        ModelNotFound, ModelError: there is no such model, or its weights are not those of its configuration.
        ConfigError: a GGUF file, or a stage needs tokens that the base model's tokenizer does not have.
    """
    if is_gguf(Path(config.base)):
        raise ConfigError(f"{config.base} is a GGUF file: adapters are trained beside a folder of safetensors")
    folder = resolve_folder(config.base)
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ConfigError(f"{folder} has no tokenizer.json, which the texts of an adapter's training need")
    known = Tokenizer.from_file(str(path)).get_vocab()
    names = {entry.source for stage in config.stages for entry in stage.mixture} - {"text"}
    if names and any(known.get(token) != number for number, token in enumerate(SPECIAL_TOKENS)):
        raise ConfigError(
            f"the sources {', '.join(sorted(names))} are made for the embedded model's tokenizer, which {folder} does not have: "
            "use the source 'text' alone"
        )
    raw = load_config(folder)
    match_program(build_program(raw, "train"), read_folder(folder))
    return dataclasses.replace(config, base=str(folder), model=raw, tokenizer=str(path))


def _check_texts(config: TrainingConfig) -> None:
    """Files that no stage reads, and stages that have no files, are errors and not surprises."""
    is_read = any(entry.source == "text" for stage in config.stages for entry in stage.mixture)
    if config.texts and not is_read:
        raise ConfigError(
            f"{len(config.texts)} text file(s) given, but no stage of recipe {config.name!r} has the source 'text'; "
            "use the recipe 'text' or add the source to a stage"
        )
    if is_read and not config.texts:
        raise ConfigError(
            f"recipe {config.name!r} trains on the source 'text': name at least one text file (--text FILE)"
        )


def load_or_make_tokenizer(config: TrainingConfig, folder: Path) -> Tokenizer:
    """The run's own tokenizer if it has one already, else the recipe's; it is kept in `folder/tokenizer`.

    Raises:
        ConfigError: the recipe names a file that is not a tokenizer, or one larger than the model's vocabulary.
    """
    kept = folder / "tokenizer" / "tokenizer.json"
    size = int(config.model["vocab_size"])
    if kept.exists():
        tokenizer = Tokenizer.from_file(str(kept))
    elif config.tokenizer == "generated":
        tokenizer = train_tokenizer(prose_corpus(), size)
    else:
        path = Path(config.tokenizer)
        if not path.is_file():
            raise ConfigError(f"tokenizer {config.tokenizer!r} is neither 'generated' nor the path of a tokenizer.json")
        tokenizer = Tokenizer.from_file(str(path))
    if tokenizer.get_vocab_size() > size:
        raise ConfigError(f"the tokenizer has {tokenizer.get_vocab_size()} tokens, the model's vocab_size is {size}")
    if not kept.exists():
        save_tokenizer(tokenizer, kept.parent, int(config.model["max_position_embeddings"]))
    return tokenizer
