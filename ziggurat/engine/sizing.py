# SPDX-License-Identifier: Apache-2.0
"""From an EngineConfig to a Program, formats and a Fit: what ``ziggurat plan`` prints and the engine builds. Torch-free, headers only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ziggurat.engine.config import EngineConfig
from ziggurat.engine.resolve import resolve_model
from ziggurat.errors import ConfigError, UnsupportedFeature
from ziggurat.memory.fit import Fit, SizeRequest, fit
from ziggurat.memory.overhead import overhead_bytes, overhead_of
from ziggurat.programs.architectures import build_program
from ziggurat.programs.checkpoint import TensorEntry, match_program, read_folder, storage_format
from ziggurat.programs.config import load_config
from ziggurat.programs.formats import BF16, COMPUTED_BLOCKS, FP32, KV_FORMATS, FormatSpec, format_by_name
from ziggurat.programs.gguf.config import config_from_gguf
from ziggurat.programs.gguf.header import GgufHeader, is_gguf, read_gguf_header
from ziggurat.programs.gguf.tensors import tensors_from_gguf
from ziggurat.programs.lower import Formats
from ziggurat.programs.packing import check_weight_format
from ziggurat.programs.program import Program


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """A model's folder or GGUF file, read and checked without its weights.

    Attributes:
        folder: the folder, or the GGUF file.
        gguf: the header of the GGUF file; None for a folder.
        raw: the configuration by the names of config.json.
        tensors: the checkpoint's tensors that the Program needs; empty with ``load_format="dummy"``.
        formats: storage of weights and KV, decided by the configuration and the checkpoint.
    """

    folder: Path
    raw: Mapping[str, Any]
    program: Program
    tensors: Mapping[str, TensorEntry]
    formats: Formats
    gguf: GgufHeader | None = None

    @property
    def quantized_as(self) -> str | None:
        """The quantized format that holds most of the values in the file, decoded while loading unless weights stay in it; None
        without."""
        stored = storage_format(self.tensors) if self.tensors else None
        return stored.name if stored is not None and stored.is_quantized else None


def open_model(config: EngineConfig, *, may_download: bool = False) -> ModelSource:
    """Find and check the model that the configuration names; reads config.json and headers of safetensors or GGUF.

    Raises:
        ModelError, UnsupportedFeature: see `resolve_model`, `load_config`, `build_program`, `read_folder`, `match_program`,
            `read_gguf_header`, `config_from_gguf`, `tensors_from_gguf`.
    """
    path = resolve_model(config.model, may_download=may_download)
    header = read_gguf_header(path) if is_gguf(path) else None
    raw = load_config(path) if header is None else config_from_gguf(header)
    program = build_program(raw)
    tensors: Mapping[str, TensorEntry] = {}
    if config.load_format != "dummy":
        found = read_folder(path) if header is None else tensors_from_gguf(header, raw)
        tensors = match_program(program, found, config_name="config.json" if header is None else "the metadata")
    formats = _formats(config, raw, tensors, program)
    return ModelSource(folder=path, gguf=header, raw=raw, program=program, tensors=tensors, formats=formats)


def _formats(
    config: EngineConfig, raw: Mapping[str, Any], tensors: Mapping[str, TensorEntry], program: Program
) -> Formats:
    plain = _plain_format(config, raw, tensors)
    kv: FormatSpec = plain if config.kv_cache_dtype == "auto" else KV_FORMATS[config.kv_cache_dtype]
    _check_kv_format(program, kv)
    return Formats(weight=_quantized_format(config, tensors, program) or plain, kv=kv)


def _check_kv_format(program: Program, kv: FormatSpec) -> None:
    """
    Raises:
        UnsupportedFeature: heads whose size is no whole number of blocks, or windows with a format that packs whole blocks of tokens.
    """
    for group in program.kv_groups():
        if group.window is not None and kv.block_tokens:
            raise UnsupportedFeature(
                f"--kv-cache-dtype {kv.name} keeps whole contexts, and {program.architecture} has sliding windows: use q8_0 or q4_0",
                feature="kv-cache-dtype",
            )
        if group.head_dim % kv.block_values:
            raise UnsupportedFeature(
                f"--kv-cache-dtype {kv.name} shares a scale among {kv.block_values} values, and the heads of {program.architecture} have "
                f"{group.head_dim}: use bf16 or fp16",
                feature="kv-cache-dtype",
            )


def _quantized_format(config: EngineConfig, tensors: Mapping[str, TensorEntry], program: Program) -> FormatSpec | None:
    """What ``quantization`` asks for, or with ``auto`` finds: one format of all matrices that linears compute with.

    ``auto`` gives way to a ``dtype`` that was asked for, and where the linears cannot take the file's format.
    """
    if config.quantization != "auto":
        return COMPUTED_BLOCKS.get(config.quantization)
    found = {entry.format.name for entry in tensors.values() if len(entry.shape) > 1}
    fmt = COMPUTED_BLOCKS.get(found.pop()) if len(found) == 1 and config.dtype == "auto" else None
    if fmt is not None:
        try:
            check_weight_format(program, fmt)
        except UnsupportedFeature:
            return None
    return fmt


def _plain_format(config: EngineConfig, raw: Mapping[str, Any], tensors: Mapping[str, TensorEntry]) -> FormatSpec:
    if config.dtype != "auto":
        weight = format_by_name(config.dtype)
    elif tensors:
        stored = storage_format(tensors)
        weight = BF16 if stored.is_quantized else stored
    else:
        declared = raw.get("dtype") or raw.get("torch_dtype")
        weight = format_by_name(declared) if isinstance(declared, str) else FP32
    return weight


def size_request(config: EngineConfig, source: ModelSource, memory_bytes: int) -> SizeRequest:
    """What `fit` is asked for.

    Args:
        memory_bytes: the budget over the baseline; resolving ``config.memory`` is the caller's part, because the default of it
            needs the baseline of the process.

    Raises:
        ConfigError: max_model_len is beyond the positions that the model was built for, or the KV format has blocks of its own.
    """
    header = source.gguf
    asked, limit = config.max_model_len, source.program.max_position
    max_model_len = None if asked in (None, "auto") else int(asked)
    if max_model_len is not None and max_model_len > limit:
        raise ConfigError(f"max_model_len {max_model_len} is above the {limit} positions that the model was built for")
    return SizeRequest(
        memory_bytes=memory_bytes,
        max_model_len=max_model_len,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.fixed_num_batched_tokens,
        block_size=_block_size(config, source.formats.kv),
        can_stream=config.offload_folder is not None,
        overhead_bytes=overhead_bytes(source.folder) if header is None else overhead_of(header.header_bytes),
    )


def _block_size(config: EngineConfig, kv: FormatSpec) -> int:
    """Tokens per KV block: a format that packs whole blocks says how many."""
    default = EngineConfig.__dataclass_fields__["block_size"].default
    if kv.block_tokens and config.block_size not in (default, kv.block_tokens):
        raise ConfigError(
            f"--kv-cache-dtype {kv.name} packs blocks of {kv.block_tokens} tokens, and --block-size is {config.block_size}: leave it out"
        )
    return kv.block_tokens or config.block_size


def size(config: EngineConfig, source: ModelSource, memory_bytes: int) -> Fit:
    """The Plan and the KV pool for that budget.

    Raises:
        ConfigError: see `size_request`.
        DoesNotFit: see `ziggurat.memory.fit.fit`.
    """
    return fit(source.program, source.formats, size_request(config, source, memory_bytes))
