# SPDX-License-Identifier: Apache-2.0
"""From an EngineConfig to a Program, formats and a Fit: what ``ziggurat plan`` prints and the engine builds. Torch-free, headers only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ziggurat.engine.config import EngineConfig
from ziggurat.engine.resolve import resolve_folder
from ziggurat.errors import ConfigError
from ziggurat.memory.fit import Fit, SizeRequest, fit
from ziggurat.memory.overhead import overhead_bytes
from ziggurat.programs.architectures import build_program
from ziggurat.programs.checkpoint import TensorEntry, match_program, read_folder, storage_format
from ziggurat.programs.config import load_config
from ziggurat.programs.formats import FP32, FormatSpec, format_by_name
from ziggurat.programs.lower import Formats
from ziggurat.programs.program import Program


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """A model's folder, read and checked without its weights.

    Attributes:
        raw: the parsed config.json.
        tensors: the checkpoint's tensors that the Program needs; empty with ``load_format="dummy"``.
        formats: storage of weights and KV, decided by the configuration and the checkpoint.
    """

    folder: Path
    raw: Mapping[str, Any]
    program: Program
    tensors: Mapping[str, TensorEntry]
    formats: Formats


def open_model(config: EngineConfig, *, may_download: bool = False) -> ModelSource:
    """Find and check the model that the configuration names; reads config.json and safetensors headers.

    Raises:
        ModelError, UnsupportedFeature: see `resolve_folder`, `load_config`, `build_program`, `read_folder`, `match_program`.
    """
    folder = resolve_folder(config.model, may_download=may_download)
    raw = load_config(folder)
    program = build_program(raw)
    tensors = {} if config.load_format == "dummy" else match_program(program, read_folder(folder))
    return ModelSource(folder=folder, raw=raw, program=program, tensors=tensors, formats=_formats(config, raw, tensors))


def _formats(config: EngineConfig, raw: Mapping[str, Any], tensors: Mapping[str, TensorEntry]) -> Formats:
    if config.dtype != "auto":
        weight = format_by_name(config.dtype)
    elif tensors:
        weight = storage_format(tensors)
    else:
        declared = raw.get("dtype") or raw.get("torch_dtype")
        weight = format_by_name(declared) if isinstance(declared, str) else FP32
    kv: FormatSpec = weight if config.kv_cache_dtype == "auto" else format_by_name(config.kv_cache_dtype)
    return Formats(weight=weight, kv=kv)


def size_request(config: EngineConfig, source: ModelSource, memory_bytes: int) -> SizeRequest:
    """What `fit` is asked for.

    Args:
        memory_bytes: the budget over the baseline; resolving ``config.memory`` is the caller's part, because the default of it
            needs the baseline of the process.

    Raises:
        ConfigError: max_model_len is beyond the positions that the model was built for.
    """
    asked, limit = config.max_model_len, source.program.max_position
    max_model_len = None if asked in (None, "auto") else int(asked)
    if max_model_len is not None and max_model_len > limit:
        raise ConfigError(f"max_model_len {max_model_len} is above the {limit} positions that the model was built for")
    return SizeRequest(
        memory_bytes=memory_bytes,
        max_model_len=max_model_len,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.fixed_num_batched_tokens,
        block_size=config.block_size,
        overhead_bytes=overhead_bytes(source.folder),
    )


def size(config: EngineConfig, source: ModelSource, memory_bytes: int) -> Fit:
    """The Plan and the KV pool for that budget.

    Raises:
        ConfigError: see `size_request`.
        DoesNotFit: see `ziggurat.memory.fit.fit`.
    """
    return fit(source.program, source.formats, size_request(config, source, memory_bytes))
