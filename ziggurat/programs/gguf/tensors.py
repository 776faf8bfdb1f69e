# SPDX-License-Identifier: Apache-2.0
"""The tensors of a GGUF file as entries of a checkpoint, by Hugging Face's names."""

from __future__ import annotations

from ziggurat.errors import ModelError, UnsupportedFeature
from ziggurat.programs.checkpoint import TensorEntry
from ziggurat.programs.config import RawConfig
from ziggurat.programs.formats import format_by_ggml, ggml_type_name, known_ggml_types
from ziggurat.programs.gguf.header import GgufHeader, GgufTensor
from ziggurat.programs.gguf.names import ROPE_FACTORS, hf_name, paired_heads


def tensors_from_gguf(header: GgufHeader, raw: RawConfig) -> dict[str, TensorEntry]:
    """Every tensor but those that belong to the configuration. A name that is not known stays as it is: matching finds it.

    Args:
        raw: from `config_from_gguf`.

    Raises:
        UnsupportedFeature: a tensor is of a type that is not read.
        ModelError: the file is truncated, or a shape contradicts its type or the configuration.
    """
    architecture = str(header.metadata["general.architecture"])
    entries = {}
    for name, tensor in header.tensors.items():
        if name == ROPE_FACTORS:
            continue
        known = hf_name(name) or name
        heads = paired_heads(architecture, known, raw["num_attention_heads"], raw["num_key_value_heads"])
        if heads and tensor.shape[0] % (2 * heads):
            raise ModelError(
                f"{header.path}: tensor {name!r} has {tensor.shape[0]} rows, which is no even number per head"
            )
        entries[known] = _entry(header, name, tensor, heads)
    return entries


def _entry(header: GgufHeader, name: str, tensor: GgufTensor, heads: int) -> TensorEntry:
    spec = format_by_ggml(tensor.type_id)
    if spec is None:
        raise UnsupportedFeature(
            f"{header.path}: tensor {name!r} is stored as {ggml_type_name(tensor.type_id)}; {known_ggml_types()} are read. "
            f"llama.cpp's quantize writes another type",
            feature=f"gguf:{ggml_type_name(tensor.type_id)}",
        )
    if spec.is_quantized and (len(tensor.shape) < 2 or tensor.shape[-1] % spec.block_values):
        raise ModelError(
            f"{header.path}: tensor {name!r} of shape {list(tensor.shape)} cannot be {spec.name}: rows are whole blocks of "
            f"{spec.block_values} values"
        )
    num_bytes = spec.num_bytes(tensor.shape)
    if tensor.offset + num_bytes > header.file_bytes:
        raise ModelError(
            f"{header.path} is truncated: tensor {name!r} ends at byte {tensor.offset + num_bytes}, the file has "
            f"{header.file_bytes}"
        )
    return TensorEntry(
        path=header.path,
        offset=tensor.offset,
        num_bytes=num_bytes,
        format=spec,
        shape=tensor.shape,
        paired_heads=heads,
    )
