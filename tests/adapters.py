# SPDX-License-Identifier: Apache-2.0
"""LoRA adapters in PEFT's layout for the small checkpoints, and the same adapters merged into the weights."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ziggurat.programs.mos import MosShape, draw_indices

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def base_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint."""
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def write_adapter(
    folder: Path,
    base: Path,
    *,
    rank: int = 4,
    seed: int = 0,
    targets: Sequence[str] = TARGETS,
    alpha: float = 8.0,
    dtype: torch.dtype = torch.float32,
    size: float = 0.3,
    ranks: Mapping[str, int] | None = None,
    config: Mapping[str, Any] | None = None,
) -> Path:
    """An adapter with random matrices; ``ranks`` by target where they are not ``rank``."""
    folder.mkdir(parents=True, exist_ok=True)
    noise = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for name, weight in base_tensors(base).items():
        module = name.removesuffix(".weight")
        target = module.rpartition(".")[2]
        if target not in targets or weight.dim() != 2:
            continue
        out_features, in_features = weight.shape
        own = (ranks or {}).get(target, rank)
        a = torch.randn(own, in_features, generator=noise) * in_features**-0.5
        b = torch.randn(out_features, own, generator=noise) * size
        tensors[f"base_model.model.{module}.lora_A.weight"] = a.to(dtype)
        tensors[f"base_model.model.{module}.lora_B.weight"] = b.to(dtype)
    raw = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": list(targets),
        "bias": "none",
        "base_model_name_or_path": str(base),
        "rank_pattern": dict(ranks or {}),
        **(config or {}),
    }
    (folder / "adapter_config.json").write_text(json.dumps(raw))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def write_mos(
    folder: Path,
    base: Path,
    *,
    num_layers: int,
    rank: int = 4,
    equivalent_rank: int = 3,
    num_shards: int = 2,
    targets: Sequence[str] = TARGETS,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Path:
    """A mixture of shards with random pools."""
    folder.mkdir(parents=True, exist_ok=True)
    noise = torch.Generator().manual_seed(seed)
    shape = MosShape(
        num_layers=num_layers, rank=rank, equivalent_rank=equivalent_rank, num_shards=num_shards, private_rank=1
    )
    tensors: dict[str, Tensor] = {}
    for name, weight in base_tensors(base).items():
        module = name.removesuffix(".weight")
        target = module.rpartition(".")[2]
        if target not in targets or weight.dim() != 2:
            continue
        for part, features, size in (("a", weight.shape[1], weight.shape[1] ** -0.5), ("b", weight.shape[0], 0.3)):
            pool = torch.randn(shape.pool_shards, features // num_shards, generator=noise) * size
            tensors.setdefault(f"{target}.pool_{part}", pool.to(dtype))
        layer = int(module.split(".")[2])
        for part, index in zip("AB", draw_indices(shape, seed, target), strict=True):
            tensors[f"base_model.model.{module}.mos_{part}.index"] = torch.from_numpy(index[layer]).contiguous()
    raw = {"peft_type": "MOS", "r": rank, "lora_alpha": 8.0, "base_model_name_or_path": str(base)}
    (folder / "adapter_config.json").write_text(json.dumps(raw))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def write_plain(folder: Path, mos: Path) -> Path:
    """The LoRA adapter that a mixture of shards amounts to."""
    folder.mkdir(parents=True)
    stored, tensors = load_file(mos / "adapter_model.safetensors"), {}
    config = json.loads((mos / "adapter_config.json").read_text())
    for name, index in stored.items():
        if name.endswith(".mos_A.index"):
            module = name.removesuffix(".mos_A.index")
            kind = module.rpartition(".")[2]
            b_index = stored[f"{module}.mos_B.index"]
            tensors[f"{module}.lora_A.weight"] = stored[f"{kind}.pool_a"][index.long()].reshape(config["r"], -1)
            b = stored[f"{kind}.pool_b"][b_index.long()].reshape(config["r"], -1)
            tensors[f"{module}.lora_B.weight"] = b.T.contiguous()
    (folder / "adapter_config.json").write_text(json.dumps({**config, "peft_type": "LORA"}))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def write_merged(folder: Path, base: Path, adapter: Path) -> Path:
    """The checkpoint with an adapter added to its weights."""
    folder.mkdir(parents=True)
    tensors = base_tensors(base)
    config = json.loads((adapter / "adapter_config.json").read_text())
    updates = load_file(adapter / "adapter_model.safetensors")
    for name, a in updates.items():
        if not name.endswith("lora_A.weight"):
            continue
        b = updates[name.replace("lora_A", "lora_B")]
        rank = a.shape[0]
        scale = config["lora_alpha"] / (rank**0.5 if config.get("use_rslora") else rank)
        target = name.removeprefix("base_model.model.").replace(".lora_A.weight", ".weight")
        weight = tensors[target]
        tensors[target] = (weight.double() + scale * b.double() @ a.double()).to(weight.dtype)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text((base / "config.json").read_text())
    return folder
