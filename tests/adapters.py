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
