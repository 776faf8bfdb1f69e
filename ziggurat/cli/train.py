# SPDX-License-Identifier: Apache-2.0
"""``ziggurat train``: train a model by a recipe, resumable at any signal."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ziggurat.cli.flags import Parser, add_flags, build, flags_of
from ziggurat.cli.output import add_output_flags, emit
from ziggurat.engine.config import option
from ziggurat.errors import ConfigError

if TYPE_CHECKING:
    from ziggurat.training.run import TrainingResult

DEFAULT_RECIPE = "embedded"


def _files(help_text: str) -> Any:
    return dataclasses.field(default=(), metadata={"help": help_text, "group": "run", "many": True})


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """One call of the trainer. What is learnt, and how, stands in the recipe."""

    recipe: str = option(DEFAULT_RECIPE, "a recipe of the package, or a TOML file", group="run")
    text: tuple[Path, ...] = _files("UTF-8 files for the recipe's source 'text'")
    out: Path | None = option(None, "folder for checkpoint, log and model (default: runs/RECIPE)", group="run")
    model: str | None = option(
        None, "the model that --lora or --mos adapts (default: the recipe's, embedded)", group="run"
    )
    lora: bool = option(False, "train a LoRA adapter of --model on --text: the recipe 'lora'", group="run")
    mos: bool = option(False, "train a mixture of shards (MoS) instead: the recipe 'mos'", group="run")
    resume: bool = option(False, "go on from the folder's checkpoint", group="run")
    max_steps: int | None = option(None, "stop after this many steps of this call", group="run")
    threads: int | None = option(None, "compute threads (default: the recipe's, else all cores)", group="run")

    @property
    def folder(self) -> Path:
        """Where the run lives."""
        return self.out or Path("runs") / Path(self.chosen).stem

    @property
    def chosen(self) -> str:
        """The recipe's name.

        Raises:
            ConfigError: several are asked for.
        """
        named = ["lora"] * self.lora + ["mos"] * self.mos + [self.recipe] * (self.recipe != DEFAULT_RECIPE)
        if len(named) > 1:
            raise ConfigError(
                f"--lora, --mos and --recipe each choose a recipe, and {' and '.join(named)} are asked for"
            )
        return named[0] if named else self.recipe


def parser() -> Parser:
    """Its flags."""
    parser = Parser(
        "ziggurat train",
        "Train a model by a recipe. Ctrl-C, SIGTERM and SIGUSR1 finish the step and write a checkpoint; --resume goes on.",
    )
    add_flags(parser, flags_of(TrainOptions))
    add_output_flags(parser)
    return parser


def run(argv: Sequence[str]) -> int:
    """Train until the recipe ends or a signal comes.

    Raises:
        ConfigError: the recipe cannot work, or the folder holds a run and --resume was not given.
        ModelError: there is nothing to resume.
    """
    namespace = parser().parse(argv)
    options = build(TrainOptions, namespace)
    from ziggurat.training.config import load_recipe
    from ziggurat.training.run import run_training

    recipe = load_recipe(options.chosen)
    if options.model is not None:
        if recipe.adapter is None:
            raise ConfigError(
                f"--model names what an adapter is for; recipe {recipe.name!r} trains a whole model: add --lora"
            )
        recipe = dataclasses.replace(recipe, base=options.model)
    recipe = dataclasses.replace(recipe, texts=(*recipe.texts, *map(str, options.text)))
    if options.threads is not None:
        recipe = dataclasses.replace(recipe, num_threads=options.threads)
    result = run_training(recipe, options.folder, resume=options.resume, max_steps=options.max_steps)
    emit(namespace, as_json(result), lambda: as_text(result))
    return 0


def as_json(result: TrainingResult) -> dict[str, Any]:
    """The result for programs."""
    return {
        "is_finished": result.is_finished,
        "model_folder": None if result.model_folder is None else str(result.model_folder),
        "checkpoint_path": str(result.checkpoint_path),
        "num_steps": result.step,
        "num_tokens": result.tokens,
        "held_out_nats_per_token": result.held_out,
    }


def as_text(result: TrainingResult) -> str:
    """The same for people."""
    seen = f"{result.tokens:,} tokens in {result.step:,} steps"
    if not result.is_finished:
        return f"{seen}; stopped, --resume goes on from {result.checkpoint_path}"
    losses = [f"held-out loss on {name}: {nats:.3f} nats per token" for name, nats in (result.held_out or {}).items()]
    kind = "adapter" if result.model_folder is not None and result.model_folder.name == "adapter" else "model"
    return "\n".join([f"{seen}; the {kind} is in {result.model_folder}", *losses])
