# SPDX-License-Identifier: Apache-2.0
"""Low-rank updates that are trained beside frozen weights: LoRA (arXiv 2106.09685) and MoS (arXiv 2410.00938)."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ziggurat.errors import ConfigError
from ziggurat.programs.adapter import CONFIG_NAME, WEIGHTS_NAME
from ziggurat.programs.mos import MosShape, draw_indices
from ziggurat.programs.program import Program
from ziggurat.registry import nearest

_PREFIX = "base_model.model."


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterConfig:
    """What is trained beside the base model.

    Attributes:
        kind: `lora` or `mos`.
        rank: rows of A, per layer.
        alpha: the update is scaled by alpha / rank.
        targets: kinds of linears (``q_proj`` ..) that are adapted, in every layer.
        equivalent_rank, num_shards, private_rank, has_own_subsets, is_dissociated: of a mixture of shards (see `MosShape`).
        has_random_scales: every layer multiplies its rows by fixed random numbers (with `has_own_subsets` off: random scaling, one of the
            baselines of MoS).
    """

    kind: Literal["lora", "mos"] = "lora"
    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    equivalent_rank: int = 2
    num_shards: int = 2
    private_rank: int = 1
    has_own_subsets: bool = True
    is_dissociated: bool = True
    has_random_scales: bool = False

    def shape(self, num_layers: int) -> MosShape:
        """The mixture of shards."""
        return MosShape(
            num_layers=num_layers,
            rank=self.rank,
            equivalent_rank=self.equivalent_rank,
            num_shards=self.num_shards,
            private_rank=self.private_rank,
            has_own_subsets=self.has_own_subsets,
            is_dissociated=self.is_dissociated,
        )


class LowRankUpdates(nn.Module, ABC):
    """Updates of linears by the names of their weights; what both kinds share.

    Args:
        program: the base model.

    Raises:
        ConfigError: a target that the model does not have, or numbers that cannot be.
    """

    def __init__(self, program: Program, config: AdapterConfig) -> None:
        super().__init__()
        if config.rank < 1 or config.alpha <= 0:
            raise ConfigError(f"an adapter of rank {config.rank} and alpha {config.alpha:g}: both must be above 0")
        self.config, self.scale = config, config.alpha / config.rank
        self.sizes = target_sizes(program, config.targets)

    @abstractmethod
    def matrices(self, name: str) -> tuple[Tensor, Tensor]:
        """A [rank, in] and B [out, rank] of a weight, differentiable."""

    def delta(self, name: str, x: Tensor) -> Tensor | None:
        """What is added to a linear's output for inputs x [T, in]; None where the weight is not adapted."""
        if name not in self.sizes:
            return None
        a, b = self.matrices(name)
        return self.scale * ((x @ a.T) @ b.T)

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """What a folder keeps, by name."""


class LoraUpdates(LowRankUpdates):
    """A of Kaiming's uniform distribution (a = sqrt 5), B of zeros: as PEFT begins."""

    def __init__(self, program: Program, config: AdapterConfig, seed: int) -> None:
        super().__init__(program, config)
        noise = torch.Generator().manual_seed(seed)
        for name, (rows, columns) in self.sizes.items():
            self.register_parameter(_slot(name, "a"), nn.Parameter(_kaiming((config.rank, columns), columns, noise)))
            self.register_parameter(_slot(name, "b"), nn.Parameter(torch.zeros(rows, config.rank)))

    def matrices(self, name: str) -> tuple[Tensor, Tensor]:
        """See `LowRankUpdates.matrices`."""
        return self.get_parameter(_slot(name, "a")), self.get_parameter(_slot(name, "b"))

    def tensors(self) -> dict[str, Tensor]:
        """See `LowRankUpdates.tensors`."""
        return _lora_tensors(self)


class MosUpdates(LowRankUpdates):
    """Pools per kind of module, shared by all layers; every layer reads its rows through indices that never change."""

    def __init__(self, program: Program, config: AdapterConfig, seed: int) -> None:
        super().__init__(program, config)
        noise = torch.Generator().manual_seed(seed)
        self._kinds: dict[str, list[str]] = {}
        for name in self.sizes:
            self._kinds.setdefault(_kind(name), []).append(name)
        for kind, names in self._kinds.items():
            sizes = {self.sizes[name] for name in names}
            if len(sizes) > 1:
                raise ConfigError(f"layers differ in the size of {kind}: {sorted(sizes)}; a pool needs one")
            rows, columns = sizes.pop()
            self._add_pools(kind, names, rows, columns, seed, noise)

    def _add_pools(
        self, kind: str, names: Sequence[str], rows: int, columns: int, seed: int, noise: torch.Generator
    ) -> None:
        shape = self.config.shape(len(names))
        indices = draw_indices(shape, seed, kind)
        lengths = shape.shard_length(columns, "in_features"), shape.shard_length(rows, "out_features")
        # The spread is that of an assembled row, not of a shard.
        first = _kaiming((shape.pool_shards, lengths[0]), columns, noise)
        self.register_parameter(f"{kind}__pool_a", nn.Parameter(first))
        self.register_parameter(f"{kind}__pool_b", nn.Parameter(torch.zeros(shape.pool_shards, lengths[1])))
        for layer, name in enumerate(names):
            for part, index in zip("ab", indices, strict=True):
                self.register_buffer(_slot(name, f"index_{part}"), torch.from_numpy(index[layer].astype("int64")))
            if self.config.has_random_scales:
                self.register_buffer(_slot(name, "scales"), torch.randn(self.config.rank, generator=noise))

    def matrices(self, name: str) -> tuple[Tensor, Tensor]:
        """See `LowRankUpdates.matrices`."""
        kind, rank = _kind(name), self.config.rank
        a = self.get_parameter(f"{kind}__pool_a")[self.get_buffer(_slot(name, "index_a"))].view(rank, -1)
        b = self.get_parameter(f"{kind}__pool_b")[self.get_buffer(_slot(name, "index_b"))].view(rank, -1)
        if self.config.has_random_scales:
            a = a * self.get_buffer(_slot(name, "scales"))[:, None]
        return a, b.T

    def tensors(self) -> dict[str, Tensor]:
        """See `LowRankUpdates.tensors`; with random scales the matrices themselves, as plain LoRA."""
        if self.config.has_random_scales:
            return _lora_tensors(self)
        found: dict[str, Tensor] = {}
        for kind, names in self._kinds.items():
            for part in "ab":
                found[f"{kind}.pool_{part}"] = self.get_parameter(f"{kind}__pool_{part}")
                for name in names:
                    index = self.get_buffer(_slot(name, f"index_{part}")).to(torch.int32)
                    found[f"{_module(name)}.mos_{part.upper()}.index"] = index
        return found


def new_updates(program: Program, config: AdapterConfig, seed: int) -> LowRankUpdates:
    """Fresh updates that change nothing yet.

    Raises:
        ConfigError: see `LowRankUpdates`.
    """
    if config.kind not in ("lora", "mos"):
        raise ConfigError(f"adapter kind must be 'lora' or 'mos', not {config.kind!r}")
    return (MosUpdates if config.kind == "mos" else LoraUpdates)(program, config, seed)


def target_sizes(program: Program, targets: Sequence[str]) -> dict[str, tuple[int, int]]:
    """[out, in] of every adapted weight, by its name, in the order of the layers.

    Raises:
        ConfigError: no linear of the model is called so.
    """
    sizes: dict[str, tuple[int, int]] = {}
    kinds = set()
    for name, spec in program.weights.items():
        if name.endswith("_proj.weight") and spec.role == "matrix":
            kinds.add(_kind(name))
            if _kind(name) in targets:
                rows, columns = spec.shape
                sizes[name] = (rows, columns)
    unknown = [target for target in targets if target not in kinds]
    if unknown:
        raise ConfigError(
            f"the model has no linears named {unknown[0]!r}{nearest(unknown[0], sorted(kinds)) or '.'} It has {', '.join(sorted(kinds))}"
        )
    return sizes


def save_adapter(
    updates: LowRankUpdates, folder: Path, base: str, *, as_lora: bool = False, dtype: torch.dtype = torch.bfloat16
) -> None:
    """Write a folder that `ziggurat serve --lora-modules` takes (and PEFT, if it is plain LoRA).

    Args:
        base: what the adapter was made for; for people.
        as_lora: assemble a mixture of shards into plain matrices.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = _lora_tensors(updates) if as_lora else updates.tensors()
    is_mos = any(name.endswith(".pool_a") for name in tensors)
    stored = {
        name: (tensor if tensor.dtype == torch.int32 else tensor.detach().to(dtype)).contiguous()
        for name, tensor in tensors.items()
    }
    config: dict[str, Any] = {
        "peft_type": "MOS" if is_mos else "LORA",
        "r": updates.config.rank,
        "lora_alpha": updates.config.alpha,
        "target_modules": list(updates.config.targets),
        "bias": "none",
        "base_model_name_or_path": base,
    }
    if is_mos:
        names = ("equivalent_rank", "num_shards", "private_rank", "has_own_subsets", "is_dissociated")
        config |= {name: getattr(updates.config, name) for name in names}
    save_file(stored, folder / WEIGHTS_NAME, metadata={"format": "pt"})
    (folder / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _lora_tensors(updates: LowRankUpdates) -> dict[str, Tensor]:
    found = {}
    for name in updates.sizes:
        a, b = updates.matrices(name)
        found[f"{_module(name)}.lora_A.weight"], found[f"{_module(name)}.lora_B.weight"] = a, b
    return found


def _kaiming(shape: tuple[int, int], fan_in: int, noise: torch.Generator) -> Tensor:
    bound = 1 / math.sqrt(fan_in)
    return torch.empty(shape).uniform_(-bound, bound, generator=noise)


def _kind(name: str) -> str:
    return name.removesuffix(".weight").rpartition(".")[2]


def _module(name: str) -> str:
    return _PREFIX + name.removesuffix(".weight")


def _slot(name: str, part: str) -> str:
    return f"{name.replace('.', '__')}__{part}"
