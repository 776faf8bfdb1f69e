# SPDX-License-Identifier: Apache-2.0
"""What a training run was asked for: frozen dataclasses and their TOML form (a recipe)."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ziggurat.errors import ConfigError
from ziggurat.registry import nearest
from ziggurat.training.lowrank import AdapterConfig

RECIPES = Path(__file__).parent / "recipes"


@dataclass(frozen=True, slots=True, kw_only=True)
class MixtureEntry:
    """One kind of sample in a stage.

    Attributes:
        source: name of a task or text source (see `ziggurat.training.sources`).
        share: relative frequency among the stage's sequences.
        weight: factor on the loss of its counted tokens.
    """

    source: str
    share: float
    weight: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AdvanceRule:
    """Leave the stage early once the running accuracy on `source` reaches `accuracy` and `min_tokens` were seen."""

    source: str
    accuracy: float
    min_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StageConfig:
    """One stage of the curriculum.

    Attributes:
        lengths_tokens: sequence lengths; every step draws one of them.
        tokens_per_step: tokens of a step, rounded down to whole sequences; at least one sequence.
        max_tokens: the stage ends after that many tokens at the latest.
        learning_rate: peak rate in this stage.
        final_learning_rate: rate at max_tokens (linear in between); None keeps it constant.
    """

    name: str
    lengths_tokens: tuple[int, ...]
    tokens_per_step: int
    max_tokens: int
    learning_rate: float
    mixture: tuple[MixtureEntry, ...]
    final_learning_rate: float | None = None
    advance: AdvanceRule | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerConfig:
    """AdamW. Weight decay applies to matrices only."""

    beta1: float = 0.9
    beta2: float = 0.98
    epsilon: float = 1e-8
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    warmup_steps: int = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """A whole run.

    Attributes:
        model: the keys of config.json (Hugging Face's names) that define the architecture.
        initial: name of the initial weights, `random` or `retrieval`.
        precision: `fp32`, `bf16` (autocast; weights stay fp32) or `auto` (bf16 where the CPU has instructions for it).
        tokenizer: `generated` (trained on the project's prose), `bytes`-only when training on it is not wanted, or a path.
        texts: user text files for the source `text`.
        base: the model whose linears an adapter updates: a folder, or `embedded`; `model` and `tokenizer` are then its own.
        adapter: the updates that are trained; None trains all weights.
        checkpoint_every_s: seconds between checkpoints; one is also written at the end and on a signal.
    """

    name: str
    stages: tuple[StageConfig, ...]
    model: Mapping[str, Any] = field(default_factory=dict)
    base: str = ""
    adapter: AdapterConfig | None = None
    seed: int = 0
    initial: str = "random"
    precision: str = "auto"
    tokenizer: str = "generated"
    texts: tuple[str, ...] = ()
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    checkpoint_every_s: float = 300.0
    log_every_steps: int = 20
    num_threads: int | None = None


def load_recipe(name_or_path: str) -> TrainingConfig:
    """Reads a recipe: a name from the package's recipes or a path to a TOML file.

    Raises:
        ConfigError: no such recipe, unknown key, missing key or a value that cannot work.
    """
    path = Path(name_or_path)
    if path.suffix != ".toml":
        path = RECIPES / f"{name_or_path}.toml"
    if not path.is_file():
        known = sorted(recipe.stem for recipe in RECIPES.glob("*.toml"))
        raise ConfigError(
            f"no recipe {name_or_path!r}{nearest(name_or_path, known) or '.'} Known: {', '.join(known)}, or a .toml file"
        )
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    return parse_recipe(raw, origin=str(path))


def parse_recipe(raw: Mapping[str, Any], *, origin: str = "recipe") -> TrainingConfig:
    """A `TrainingConfig` from parsed TOML; see `load_recipe` for the errors."""
    fields = dict(raw)
    fields["optimizer"] = _build(OptimizerConfig, fields.get("optimizer", {}), f"{origin}: optimizer")
    fields["stages"] = tuple(
        _stage(stage, f"{origin}: stages[{i}]") for i, stage in enumerate(fields.get("stages", ()))
    )
    fields["texts"] = tuple(fields.get("texts", ()))
    if "adapter" in fields:
        fields["adapter"] = _adapter(fields["adapter"], f"{origin}: adapter")
    config: TrainingConfig = _build(TrainingConfig, fields, origin)
    check(config, origin)
    return config


def check(config: TrainingConfig, origin: str = "recipe") -> None:
    """Raises ConfigError if a value cannot work, naming it and what would."""
    if not config.stages:
        raise ConfigError(f"{origin}: at least one [[stages]] table is needed")
    if config.initial not in ("random", "retrieval"):
        raise ConfigError(f"{origin}: initial must be 'random' or 'retrieval', not {config.initial!r}")
    if (config.adapter is None) != (not config.base) or not (config.model or config.base):
        raise ConfigError(f"{origin}: [model] trains a model of its own; base and [adapter], together, adapt one")
    if config.precision not in ("auto", "fp32", "bf16"):
        raise ConfigError(f"{origin}: precision must be 'auto', 'fp32' or 'bf16', not {config.precision!r}")
    if not config.model:
        return  # the base model's own numbers are read first
    limit = int(config.model.get("max_position_embeddings", 0))
    for stage in config.stages:
        label = f"{origin}: stage {stage.name!r}"
        if not stage.lengths_tokens or min(stage.lengths_tokens) < 8 or max(stage.lengths_tokens) > limit:
            raise ConfigError(
                f"{label}: lengths_tokens is {stage.lengths_tokens}, each must be in 8..{limit} (max_position_embeddings)"
            )
        if stage.tokens_per_step < 1 or stage.max_tokens < 1:
            raise ConfigError(f"{label}: tokens_per_step and max_tokens must be above 0")
        if not stage.mixture or any(entry.share <= 0 for entry in stage.mixture):
            raise ConfigError(f"{label}: the mixture needs at least one entry, each with a share above 0")


def _adapter(raw: Mapping[str, Any], origin: str) -> AdapterConfig:
    fields = dict(raw)
    if "targets" in fields:
        fields["targets"] = tuple(fields["targets"])
    adapter: AdapterConfig = _build(AdapterConfig, fields, origin)
    return adapter


def _stage(raw: Mapping[str, Any], origin: str) -> StageConfig:
    fields = dict(raw)
    fields["lengths_tokens"] = tuple(fields.get("lengths_tokens", ()))
    fields["mixture"] = tuple(
        _build(MixtureEntry, entry, f"{origin}: mixture[{i}]") for i, entry in enumerate(fields.get("mixture", ()))
    )
    if fields.get("advance") is not None:
        fields["advance"] = _build(AdvanceRule, fields["advance"], f"{origin}: advance")
    stage: StageConfig = _build(StageConfig, fields, origin)
    return stage


def _build(cls: type[Any], raw: Mapping[str, Any], origin: str) -> Any:
    known = {spec.name: spec for spec in dataclasses.fields(cls)}
    for key in raw:
        if key not in known:
            raise ConfigError(
                f"{origin}: unknown key {key!r}{nearest(key, list(known)) or '.'} Known: {', '.join(known)}"
            )
    for name, spec in known.items():
        has_default = spec.default is not dataclasses.MISSING or spec.default_factory is not dataclasses.MISSING
        if name not in raw and not has_default:
            raise ConfigError(f"{origin}: key {name!r} is missing")
    return cls(**raw)
