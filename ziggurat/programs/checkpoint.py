# SPDX-License-Identifier: Apache-2.0
"""Checkpoints without their bytes: which tensors a folder of safetensors holds, where, and whether they match a Program.

Format: https://github.com/huggingface/safetensors (8-byte little-endian header length, JSON header, data). Only headers are read
here, so that planning needs neither torch nor the weights.
"""

from __future__ import annotations

import json
import math
import os
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ziggurat.errors import ModelError, ModelNotFound, UnsupportedFeature
from ziggurat.programs.formats import INT32, FormatSpec, format_by_safetensors
from ziggurat.programs.program import Program
from ziggurat.registry import nearest

_MAX_HEADER_BYTES = 100 * 1024 * 1024
_EXPERT = re.compile(r"\.experts\.(\d+)\.")
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorEntry:
    """One tensor of a checkpoint: where its bytes are, and what they are.

    Attributes:
        paired_heads: heads whose rows lie in pairs (`ziggurat.programs.gguf.names`); 0: rows are in Hugging Face's order.
    """

    path: Path
    offset: int
    num_bytes: int
    format: FormatSpec
    shape: tuple[int, ...]
    paired_heads: int = 0


def read_header(path: Path, *, may_index: bool = False) -> dict[str, TensorEntry]:
    """All tensors of one safetensors file.

    Args:
        may_index: tensors of int32 are read too.

    Raises:
        ModelError: truncated, not safetensors, or offsets that contradict shapes.
        UnsupportedFeature: a dtype that is not read.
    """
    size = os.path.getsize(path)
    with path.open("rb") as file:
        prefix = file.read(8)
        if len(prefix) < 8:
            raise ModelError(f"{path} is truncated: {size} bytes, not even a safetensors header length")
        (length,) = struct.unpack("<Q", prefix)
        if length > min(_MAX_HEADER_BYTES, size - 8):
            raise ModelError(
                f"{path} is truncated or not safetensors: header of {length} bytes in a file of {size} bytes"
            )
        blob = file.read(length)
    try:
        header = json.loads(blob)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} is not safetensors: its header is not JSON ({error})") from error
    if not isinstance(header, dict):
        raise ModelError(f"{path} is not safetensors: its header is not a JSON object")
    header.pop("__metadata__", None)
    return {name: _entry(path, name, raw, 8 + length, size, may_index) for name, raw in header.items()}


def _entry(path: Path, name: str, raw: object, data_start: int, file_bytes: int, may_index: bool) -> TensorEntry:
    try:
        dtype = str(raw["dtype"])  # type: ignore[index]
        shape = tuple(int(n) for n in raw["shape"])  # type: ignore[index]
        begin, end = (int(n) for n in raw["data_offsets"])  # type: ignore[index]
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{path}: the header entry of tensor {name!r} is damaged ({error!r})") from error
    fmt = INT32 if may_index and dtype == INT32.safetensors else format_by_safetensors(dtype)
    if fmt is None:
        raise UnsupportedFeature(
            f"{path}: tensor {name!r} is stored as {dtype}; F32, BF16 and F16 are read", feature=f"dtype:{dtype}"
        )
    if begin < 0 or end - begin != fmt.num_bytes(shape):
        raise ModelError(f"{path}: tensor {name!r} of shape {list(shape)} and dtype {dtype} claims {end - begin} bytes")
    if data_start + end > file_bytes:
        raise ModelError(
            f"{path} is truncated: tensor {name!r} ends at byte {data_start + end}, the file has {file_bytes}"
        )
    return TensorEntry(path=path, offset=data_start + begin, num_bytes=end - begin, format=fmt, shape=shape)


def _shard_paths(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return sorted(folder.glob("*.safetensors"))
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{index} is damaged: it must hold a JSON object with 'weight_map' ({error!r})") from error
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ModelError(
            f"{folder}: the index names {len(names)} shards, {len(missing)} are missing: {', '.join(missing[:3])}"
        )
    return [folder / name for name in names]


def read_folder(folder: Path) -> dict[str, TensorEntry]:
    """All tensors of a folder, sharded or not.

    Raises:
        ModelNotFound: no weights at all.
        ModelError: damaged, incomplete, or pickle files only.
    """
    paths = _shard_paths(folder)
    if not paths:
        pickles = [path.name for path in sorted(folder.iterdir()) if path.suffix in _PICKLE_SUFFIXES]
        if pickles:
            raise ModelError(
                f"{folder} holds pickle weights ({pickles[0]}), which can run code when loaded and are refused; "
                f"convert them to safetensors"
            )
        raise ModelNotFound(f"{folder} holds no *.safetensors file")
    tensors: dict[str, TensorEntry] = {}
    for path in paths:
        for name, entry in read_header(path).items():
            if name in tensors:
                raise ModelError(f"{folder}: tensor {name!r} is in {tensors[name].path.name} and in {path.name}")
            tensors[name] = entry
    return tensors


def match_program(
    program: Program, tensors: Mapping[str, TensorEntry], *, config_name: str = "config.json"
) -> dict[str, TensorEntry]:
    """The tensors that the Program needs, checked; extra ones are an error unless the Program ignores them.

    Args:
        config_name: where the configuration stands, for messages.

    Raises:
        ModelError: a tensor is missing, unexpected, or of another shape.
    """
    needed = {name: spec for name, spec in program.weights.items() if spec.tied_to is None}
    _check_experts(set(needed), set(tensors))
    missing = [name for name in needed if name not in tensors]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        hint = nearest(missing[0], list(tensors))
        raise ModelError(f"the checkpoint lacks tensor {missing[0]!r}{more}{hint or '.'} It has {len(tensors)} tensors")
    for name, spec in needed.items():
        if tensors[name].shape != spec.shape:
            raise ModelError(
                f"tensor {name!r} has shape {list(tensors[name].shape)}, {config_name} implies {list(spec.shape)} "
                f"({tensors[name].path.name})"
            )
    tied = {name for name, spec in program.weights.items() if spec.tied_to is not None}
    extra = [
        name
        for name in tensors
        if name not in needed and name not in tied and not name.endswith(program.ignored_weights)
    ]
    if extra:
        raise ModelError(
            f"the checkpoint has {len(extra)} tensors that {config_name} does not account for, first {extra[0]!r}: "
            f"{config_name} contradicts the weights"
        )
    return {name: tensors[name] for name in needed}


def _check_experts(needed: set[str], tensors: set[str]) -> None:
    """One message for a wrong number of experts, instead of one of the many tensors that follow from it."""
    asked, stored = ({int(number) for name in names for number in _EXPERT.findall(name)} for names in (needed, tensors))
    if asked and stored and len(asked) != len(stored):
        raise ModelError(
            f"config.json says {len(asked)} experts per layer, the checkpoint has {len(stored)}: num_local_experts (or "
            f"num_experts) contradicts the tensors; set it to {len(stored)}, or take the config.json that came with the weights"
        )


def storage_format(tensors: Mapping[str, TensorEntry]) -> FormatSpec:
    """The format that holds most of the values: what ``--dtype auto`` keeps, unless it is quantized."""
    totals: dict[str, int] = {}
    formats: dict[str, FormatSpec] = {}
    for entry in tensors.values():
        formats[entry.format.name] = entry.format
        totals[entry.format.name] = totals.get(entry.format.name, 0) + math.prod(entry.shape)
    return formats[max(totals, key=lambda name: (totals[name], name))]
