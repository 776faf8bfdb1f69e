# SPDX-License-Identifier: Apache-2.0
"""A low-rank adapter's folder in PEFT's layout: read and checked against a Program, headers only. Torch-free.

``adapter_config.json`` says rank, alpha and which matrices; ``adapter_model.safetensors`` has ``..lora_A.weight`` [rank, in] and
``..lora_B.weight`` [out, rank] for each. What would change the arithmetic beyond that is refused by name. A pickle (``adapter_model.bin``)
is never opened. A mixture of shards (`ziggurat.programs.mos`) has pools and indices in the place of the matrices.
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
from ziggurat.programs.formats import INT32
from ziggurat.programs.program import Program

CONFIG_NAME, WEIGHTS_NAME, PICKLE_NAME = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
KINDS = ("LORA", "MOS")
_PREFIX = "base_model.model."
_POOL = re.compile(r"(?P<kind>\w+)\.pool_(?P<part>[ab])")
_INDEX = re.compile(r"(?P<module>.+)\.mos_(?P<part>[AB])\.index")
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
        a, b: entries of the file, [rank, in] and [out, rank]; with indices the pools, [shards, in / l] and [shards, out / l], which
            other updates may share.
        a_index, b_index: entries of the file, int32 [rank, l], or None.
    """

    a: TensorEntry
    b: TensorEntry
    rank: int
    scale: float
    a_index: TensorEntry | None = None
    b_index: TensorEntry | None = None


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

    def pieces(self) -> list[tuple[TensorEntry, bool]]:
        """What has to be in memory, each once, and whether it is transposed there: a B [out, rank] is kept as [rank, out]."""
        found: dict[int, tuple[TensorEntry, bool]] = {}
        for update in self.updates.values():
            for entry in (update.a, update.b, update.a_index, update.b_index):
                if entry is not None:
                    found[id(entry)] = (entry, entry is update.b and update.b_index is None)
        return list(found.values())

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
    is_mos = config["peft_type"] == "MOS"
    entries = read_header(path, may_index=is_mos)
    updates = (_assembled if is_mos else _updates)(entries, config, program, path)
    if not updates:
        raise ModelError(f"{path} has no {'index of a matrix' if is_mos else 'lora_A and lora_B matrices'}")
    return AdapterSource(
        folder=folder,
        updates=updates,
        base_model=str(config.get("base_model_name_or_path") or ""),
        num_bytes=sum(entry.num_bytes for entry in entries.values()),
    )


def _config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_NAME
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{folder} has no {CONFIG_NAME}: is it an adapter saved by peft?") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read {path}: {error}") from error
    if not isinstance(config, dict) or config.get("peft_type") not in KINDS:
        kind = config.get("peft_type") if isinstance(config, dict) else None
        raise UnsupportedFeature(
            f"{path} is of kind {kind!r}; {' and '.join(KINDS)} adapters are served", feature="peft_type"
        )
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


def _assembled(
    entries: Mapping[str, TensorEntry], config: Mapping[str, Any], program: Program, path: Path
) -> dict[str, LowRank]:
    """The updates of a mixture of shards."""
    pools: dict[tuple[str, str], TensorEntry] = {}
    indices: dict[str, dict[str, TensorEntry]] = {}
    for name, entry in entries.items():
        pool, index = _POOL.fullmatch(name), _INDEX.fullmatch(name)
        if pool is not None:
            pools[pool["kind"], pool["part"]] = entry
        elif index is not None:
            indices.setdefault(index["module"].removeprefix(_PREFIX), {})[index["part"]] = entry
        else:
            raise UnsupportedFeature(f"{path} has a tensor {name!r} that is no pool and no index", feature="mos:tensor")
    return {
        f"{module}.weight": _mixture(module, parts, pools, config, _matrix_shape(module, program, path), path)
        for module, parts in sorted(indices.items())
    }


def _mixture(
    module: str,
    parts: Mapping[str, TensorEntry],
    pools: Mapping[tuple[str, str], TensorEntry],
    config: Mapping[str, Any],
    shape: tuple[int, int],
    path: Path,
) -> LowRank:
    rank, kind = config["r"], module.rpartition(".")[2]
    a, b = pools.get((kind, "a")), pools.get((kind, "b"))
    if set(parts) != {"A", "B"} or a is None or b is None:
        raise ModelError(f"{path}: {module!r} lacks an index, or {kind!r} a pool")
    for pool, numbers, features in ((a, parts["A"], shape[1]), (b, parts["B"], shape[0])):
        is_whole = len(numbers.shape) == len(pool.shape) == 2 and numbers.shape[0] == rank
        if not is_whole or numbers.format != INT32 or numbers.shape[1] * pool.shape[1] != features:
            raise ModelError(
                f"{path}: {module!r} has an index {list(numbers.shape)} into shards {list(pool.shape)}, which do not make {rank} rows of "
                f"{features}: it was made for another base model"
            )
    if a.format != b.format or a.format == INT32:
        raise UnsupportedFeature(f"{path}: pools of {a.format.name} and {b.format.name}", feature="mos:format")
    scale = float(config["lora_alpha"]) / rank
    return LowRank(a=a, b=b, rank=rank, scale=scale, a_index=parts["A"], b_index=parts["B"])


def _matrix_shape(module: str, program: Program, path: Path) -> tuple[int, int]:
    """Of the base model's matrix that a module names."""
    spec = program.weights.get(f"{module}.weight")
    if spec is None or spec.role != "matrix":
        raise ModelError(
            f"{path} adapts {module!r}, and {program.architecture} has no such matrix: it was made for another base model"
        )
    rows, columns = spec.shape
    return rows, columns


def _update(
    module: str, parts: Mapping[str, TensorEntry], config: Mapping[str, Any], program: Program, path: Path
) -> LowRank:
    rows, columns = _matrix_shape(module, program, path)
    if set(parts) != {"A", "B"}:
        raise ModelError(f"{path}: {module!r} has lora_{next(iter(parts))} alone")
    a, b = parts["A"], parts["B"]
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
