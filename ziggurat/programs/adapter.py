# SPDX-License-Identifier: Apache-2.0
"""A LoRA adapter's folder in PEFT's layout: read and checked against a Program, headers only. Torch-free.

``adapter_config.json`` says rank, alpha and which matrices; ``adapter_model.safetensors`` has ``..lora_A.weight`` [rank, in] and
``..lora_B.weight`` [out, rank] for each. What would change the arithmetic beyond that is refused by name. A pickle (``adapter_model.bin``)
is never opened.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ziggurat.errors import ModelError, UnsupportedFeature
from ziggurat.programs.checkpoint import TensorEntry, read_header
from ziggurat.programs.program import Program

CONFIG_NAME, WEIGHTS_NAME, PICKLE_NAME = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
_PREFIX = "base_model.model."
_TENSOR = re.compile(r"(?P<module>.+)\.lora_(?P<part>[AB])\.weight")
# Settings of PEFT's LoraConfig that change what an adapter computes, and the values that leave it as it is.
_HARMLESS: Mapping[str, tuple[Any, ...]] = {
    "bias": ("none",),
    "fan_in_fan_out": (False,),
    "use_dora": (False,),
    "use_qalora": (False,),
    "lora_bias": (False,),
    "modules_to_save": (None, []),
    "trainable_token_indices": (None, []),
    "layer_replication": (None, []),
    "target_parameters": (None, []),
    "alora_invocation_tokens": (None, []),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LowRank:
    """One matrix's update: ``W + scale * B A``.

    Attributes:
        a, b: entries of the file, [rank, in] and [out, rank].
    """

    a: TensorEntry
    b: TensorEntry
    rank: int
    scale: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterSource:
    """An adapter as it lies in its folder.

    Attributes:
        updates: by the name of the base model's tensor.
        base_model: what it says it was made for; for people.
        num_bytes: of its matrices, as they are stored.
    """

    folder: Path
    updates: Mapping[str, LowRank]
    base_model: str
    num_bytes: int

    @property
    def max_rank(self) -> int:
        """The largest rank."""
        return max(update.rank for update in self.updates.values())


def read_adapter(folder: Path, program: Program) -> AdapterSource:
    """Read headers and check everything that can be checked without the numbers.

    Raises:
        ModelError: a file is missing or broken, or a shape or a name is not the base model's; says which tensor.
        UnsupportedFeature: something that is not plain LoRA, or a pickle.
    """
    config = _config(folder)
    path = folder / WEIGHTS_NAME
    if not path.is_file():
        if (folder / PICKLE_NAME).exists():
            raise UnsupportedFeature(
                f"{folder / PICKLE_NAME} is a pickle, which may run code when it is read: save the adapter as safetensors "
                "(peft's save_pretrained does so by default)",
                feature="pickle",
            )
        raise ModelError(f"{folder} has no {WEIGHTS_NAME}: is it an adapter saved by peft?")
    updates = _updates(read_header(path), config, program, path)
    if not updates:
        raise ModelError(f"{path} has no lora_A and lora_B matrices")
    return AdapterSource(
        folder=folder,
        updates=updates,
        base_model=str(config.get("base_model_name_or_path") or ""),
        num_bytes=sum(each.a.num_bytes + each.b.num_bytes for each in updates.values()),
    )


def _config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_NAME
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{folder} has no {CONFIG_NAME}: is it an adapter saved by peft?") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read {path}: {error}") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else None
        raise UnsupportedFeature(f"{path} is of kind {kind!r}; only LORA adapters are served", feature="peft_type")
    for name, harmless in _HARMLESS.items():
        if config.get(name, harmless[0]) not in harmless:
            raise UnsupportedFeature(
                f"{path} sets {name} to {config[name]!r}, which is not served", feature=f"lora:{name}"
            )
    for name in ("r", "lora_alpha"):
        if not isinstance(config.get(name), int | float) or isinstance(config[name], bool) or config[name] <= 0:
            raise ModelError(f"{path} must say {name}, a number above 0; it has {config.get(name)!r}")
    return config


def _updates(
    entries: Mapping[str, TensorEntry], config: Mapping[str, Any], program: Program, path: Path
) -> dict[str, LowRank]:
    found: dict[str, dict[str, TensorEntry]] = {}
    for name, entry in entries.items():
        match = _TENSOR.fullmatch(name)
        if match is None:
            raise UnsupportedFeature(f"{path} has a tensor {name!r} that is no lora_A or lora_B", feature="lora:tensor")
        found.setdefault(match["module"].removeprefix(_PREFIX), {})[match["part"]] = entry
    return {
        f"{module}.weight": _update(module, parts, config, program, path) for module, parts in sorted(found.items())
    }


def _update(
    module: str, parts: Mapping[str, TensorEntry], config: Mapping[str, Any], program: Program, path: Path
) -> LowRank:
    name = f"{module}.weight"
    spec = program.weights.get(name)
    if spec is None or spec.role != "matrix":
        raise ModelError(
            f"{path} adapts {module!r}, and {program.architecture} has no such matrix: it was made for another base model"
        )
    if set(parts) != {"A", "B"}:
        raise ModelError(f"{path}: {module!r} has lora_{next(iter(parts))} alone")
    a, b = parts["A"], parts["B"]
    rows, columns = spec.shape
    if (
        len(a.shape) != 2
        or len(b.shape) != 2
        or a.shape[1] != columns
        or b.shape[0] != rows
        or a.shape[0] != b.shape[1]
    ):
        raise ModelError(
            f"{path}: {module!r} has A {list(a.shape)} and B {list(b.shape)}, the base model's matrix is [{rows}, {columns}]: "
            "it was made for another base model"
        )
    if a.format != b.format or a.format.is_quantized:
        raise UnsupportedFeature(
            f"{path}: A and B of {module!r} are {a.format.name} and {b.format.name}", feature="lora:format"
        )
    rank = a.shape[0]
    wanted = _by_pattern(config, "rank_pattern", module, config["r"])
    if rank != wanted:
        raise ModelError(f"{path}: {module!r} has rank {rank}, {CONFIG_NAME} says {wanted}")
    alpha = float(_by_pattern(config, "alpha_pattern", module, config["lora_alpha"]))
    return LowRank(a=a, b=b, rank=rank, scale=alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))


def _by_pattern(config: Mapping[str, Any], name: str, module: str, default: Any) -> Any:
    """peft's rule: a key is a module's name or the end of it, or a regular expression for that."""
    for pattern, value in (config.get(name) or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default
