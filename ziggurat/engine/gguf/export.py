# SPDX-License-Identifier: Apache-2.0
"""A model folder as one GGUF file that llama.cpp loads: tensor by tensor, so that no more than one is in memory."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ziggurat import __version__
from ziggurat.engine.gguf.options import EXPORT_FORMATS
from ziggurat.engine.gguf.vocabulary import vocabulary_metadata
from ziggurat.engine.sizing import ModelSource
from ziggurat.errors import ConfigError, ModelError, UnsupportedFeature
from ziggurat.programs.checkpoint import TensorEntry
from ziggurat.programs.formats import BF16, FP16, FP32, Q4_0, Q8_0, FormatSpec
from ziggurat.programs.gguf.metadata import GgufModel, gguf_model
from ziggurat.programs.gguf.names import ROPE_FACTORS, gguf_name, paired_heads, paired_row
from ziggurat.quantization import ggml

__all__ = ["EXPORT_FORMATS", "Exported", "export_gguf"]

Progress = Callable[[str, int, int], None]
"""(what is being done, bytes done, bytes in total)."""

# llama_ftype of llama.h, for general.file_type.
_FILE_TYPES = {FP32.name: 0, FP16.name: 1, Q4_0.name: 2, Q8_0.name: 7, BF16.name: 32}
# The largest value of a block is that many times its scale.
_LARGEST_STEPS = {Q8_0.name: 127, Q4_0.name: 8}
_STORED: Mapping[str, np.dtype[Any]] = {
    FP32.name: np.dtype("<f4"),
    FP16.name: np.dtype("<f2"),
    BF16.name: np.dtype("<u2"),
}
_SLICE_VALUES = 1 << 20
_INT32_KEYS = ("general.sampling.top_k",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What was written.

    Attributes:
        num_bytes: size of the file.
        num_tensors, num_fallback: tensors in it; those among them in F16 because their rows are not whole blocks.
        notes: what the file promises less than the folder.
        errors: of every quantized tensor, by its name in the folder: the length of the difference over the length of the tensor.
        weight_bytes, num_values: of all tensors in the file.
    """

    path: Path
    num_bytes: int
    num_tensors: int
    num_fallback: int
    notes: tuple[str, ...]
    errors: Mapping[str, float]
    weight_bytes: int
    num_values: int


def export_gguf(
    source: ModelSource, path: Path, spec: FormatSpec = FP16, *, name: str = "", progress: Progress | None = None
) -> Exported:
    """Write a file; an older one of that name is replaced when the new one is whole.

    Args:
        source: an opened folder (`ziggurat.engine.sizing.open_model`).
        spec: format of matrices, one of `EXPORT_FORMATS`; vectors are F32 always, as llama.cpp wants.
        name: ``general.name``; the folder's name without it.

    Raises:
        UnsupportedFeature: an architecture, tokenizer or variant that llama.cpp would not compute in the same way.
        ModelError: a tensor is truncated, or does not fit the format.
        ConfigError: the file cannot be written, or the package `gguf` is missing.
    """
    if find_spec("gguf") is None:
        raise ConfigError("writing GGUF needs the package gguf: pip install gguf (or the extra ziggurat[gguf])")
    if source.gguf is not None:
        raise UnsupportedFeature(
            f"{source.folder} is GGUF already; llama.cpp's quantize writes it in another type",
            feature="gguf:requantize",
        )
    if not source.tensors:
        raise ConfigError("a model without weights (load_format dummy) cannot be exported")
    model = gguf_model(source.raw)
    values = _metadata(source, model, spec, name)
    tensors = [_Tensor(hf_name, entry, spec, model) for hf_name, entry in source.tensors.items()]
    part = path.with_name(path.name + ".part")
    try:
        try:
            _write(part, model, values, tensors, progress)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror or error}") from error
    return Exported(
        path=path,
        num_bytes=path.stat().st_size,
        num_tensors=len(tensors) + (model.rope_factors is not None),
        num_fallback=sum(tensor.is_fallback for tensor in tensors),
        notes=model.notes,
        errors={tensor.hf_name: tensor.relative_error for tensor in tensors if tensor.spec.is_quantized},
        weight_bytes=sum(tensor.num_bytes for tensor in tensors),
        num_values=sum(math.prod(tensor.entry.shape) for tensor in tensors),
    )


def _metadata(source: ModelSource, model: GgufModel, spec: FormatSpec, name: str) -> dict[str, Any]:
    return {
        "general.type": "model",
        "general.name": name or source.folder.resolve().name,
        "general.file_type": _FILE_TYPES[spec.name],
        "general.quantization_version": 2,
        "general.quantized_by": f"ziggurat {__version__}",
        **model.metadata,
        **vocabulary_metadata(source.folder, source.raw),
    }


class _Tensor:
    """One tensor on its way: its name and type in the file, its rows converted."""

    def __init__(self, hf_name: str, entry: TensorEntry, spec: FormatSpec, model: GgufModel) -> None:
        name = gguf_name(hf_name)
        if name is None:
            raise UnsupportedFeature(f"GGUF has no name for tensor {hf_name!r}", feature=f"gguf:{hf_name}")
        self.name, self.hf_name, self.entry = name, hf_name, entry
        self.is_fallback = len(entry.shape) > 1 and entry.shape[-1] % spec.block_values != 0
        self.spec = FP32 if len(entry.shape) == 1 else FP16 if self.is_fallback else spec
        config = model.config
        heads = paired_heads(model.architecture, hf_name, config.num_attention_heads, config.num_key_value_heads)
        self._head_rows = entry.shape[0] // heads if heads else 0
        self._squares = self._squared_error = 0.0

    @property
    def num_bytes(self) -> int:
        """In the file."""
        return self.spec.num_bytes(self.entry.shape)

    @property
    def relative_error(self) -> float:
        """Of what was converted so far."""
        return math.sqrt(self._squared_error / self._squares) if self._squares else 0.0

    def converted(self) -> NDArray[np.uint8]:
        """[rows, bytes of a row] as the file has them."""
        num_rows = self.entry.shape[0]
        width = self.entry.shape[1] if len(self.entry.shape) > 1 else 1
        result = np.empty((num_rows, self.num_bytes // num_rows), np.uint8)
        order = np.arange(num_rows)
        if self._head_rows:
            order = np.array([paired_row(row, self._head_rows) for row in range(num_rows)])
        step = max(1, _SLICE_VALUES // width)
        for start in range(0, num_rows, step):
            values = self._values(start, min(step, num_rows - start), width)
            encoded = ggml.encode(self.spec, values)
            self._check(values, encoded)
            if self.spec.is_quantized:
                self._note_error(values, encoded)
            result[order[start : start + step]] = encoded.view(np.uint8).reshape(len(values), -1)
        return result

    def _note_error(self, values: NDArray[np.float32], encoded: NDArray[Any]) -> None:
        decoded = np.empty_like(values)
        ggml.decode(self.spec, encoded, decoded)
        self._squares += float(np.square(values, dtype=np.float64).sum())
        self._squared_error += float(np.square(values.astype(np.float64) - decoded).sum())

    def _values(self, start: int, count: int, width: int) -> NDArray[np.float32]:
        entry = self.entry
        stored = _STORED[entry.format.name]
        offset = entry.offset + start * width * stored.itemsize
        values = np.fromfile(entry.path, stored, count * width, offset=offset)
        if len(values) < count * width:
            raise ModelError(f"{entry.path} is truncated: tensor {self.hf_name!r} ends before byte {offset}")
        values = values.reshape(count, width)
        return ggml.bf16_to_fp32(values) if entry.format == BF16 else np.asarray(values, np.float32)

    def _check(self, values: NDArray[np.float32], encoded: NDArray[Any]) -> None:
        """A value beyond f16, which is also the type of a block's scale, would become infinite without a word."""
        if self.spec == FP16 and not np.isfinite(encoded).all() and np.isfinite(values).all():
            largest = float(np.abs(values).max())
            raise ModelError(
                f"tensor {self.hf_name!r} has values up to {largest:.3g}, f16 ends at 65504: use --type bf16 or f32"
            )
        steps = _LARGEST_STEPS.get(self.spec.name)
        if steps is not None and not np.abs(values).max() <= 65504 * steps:
            name = self.spec.name
            raise ModelError(f"tensor {self.hf_name!r} has values that {name} cannot hold: use --type bf16 or f32")


def _write(
    path: Path, model: GgufModel, values: Mapping[str, Any], tensors: list[_Tensor], progress: Progress | None
) -> None:
    gguf: Any = import_module("gguf")
    writer = gguf.GGUFWriter(path, model.architecture)
    for key, value in values.items():
        _add(writer, key, value)
    for tensor in tensors:
        rows = tensor.entry.shape[0]
        shape = tensor.entry.shape if len(tensor.entry.shape) == 1 else (rows, tensor.num_bytes // rows)
        dtype = np.dtype(np.float32) if len(shape) == 1 else np.dtype(np.uint8)
        kind = gguf.GGMLQuantizationType[_GGML_NAMES[tensor.spec.name]]
        writer.add_tensor_info(tensor.name, shape, dtype, tensor.num_bytes, raw_dtype=kind)
    factors = None if model.rope_factors is None else np.array(model.rope_factors, np.float32)
    if factors is not None:
        writer.add_tensor_info(ROPE_FACTORS, factors.shape, factors.dtype, factors.nbytes)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        done, total = 0, sum(tensor.num_bytes for tensor in tensors)
        for tensor in tensors:
            writer.write_tensor_data(tensor.converted())
            done += tensor.num_bytes
            if progress is not None:
                progress("writing", done, total)
        if factors is not None:
            writer.write_tensor_data(factors)
    finally:
        writer.close()


_GGML_NAMES = {FP32.name: "F32", FP16.name: "F16", BF16.name: "BF16", Q8_0.name: "Q8_0", Q4_0.name: "Q4_0"}


def _add(writer: Any, key: str, value: Any) -> None:
    """A metadata pair with the value type that llama.cpp reads there."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        (writer.add_int32 if key in _INT32_KEYS else writer.add_uint32)(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
