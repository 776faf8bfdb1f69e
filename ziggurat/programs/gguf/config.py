# SPDX-License-Identifier: Apache-2.0
"""The metadata of a GGUF file as the fields of a ``config.json``: what `build_program` reads.

Source of the keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md and llama.cpp's ``llama-model.cpp``.
"""

from __future__ import annotations

import struct
from typing import Any

from ziggurat.errors import ModelError, UnknownArchitecture, UnsupportedFeature
from ziggurat.programs.gguf.header import GgufArray, GgufHeader
from ziggurat.programs.gguf.names import ROPE_FACTORS
from ziggurat.registry import nearest

# Mistral is written as llama too: the computation is the same.
_CLASSES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
_END_TOKENS = ("eos", "eot", "eom")
_F32 = 0


def config_from_gguf(header: GgufHeader) -> dict[str, Any]:
    """The configuration by Hugging Face's names.

    Raises:
        UnknownArchitecture: ``general.architecture`` is none that is read.
        UnsupportedFeature: a variant that is known and not built.
        ModelError: a key is absent, of another type, or contradicts another.
    """
    name = _architecture(header)
    fields = _Fields(header, name)
    hidden, heads = fields.integer("embedding_length"), fields.integer("attention.head_count")
    kv_heads = fields.integer("attention.head_count_kv", heads)
    head_dim = _head_dim(fields, hidden, heads, kv_heads)
    context = fields.integer("context_length")
    _refuse_variants(fields, context)
    raw: dict[str, Any] = {
        "architectures": [_CLASSES[name]],
        "vocab_size": _vocab_size(header, fields),
        "hidden_size": hidden,
        "intermediate_size": fields.integer("feed_forward_length"),
        "num_hidden_layers": fields.integer("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "rms_norm_eps": fields.real("attention.layer_norm_rms_epsilon"),
        "hidden_act": "silu",
        "max_position_embeddings": context,
        "rope_theta": fields.real("rope.freq_base", 10000.0),
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "attention_bias": name != "qwen2" and "blk.0.attn_q.bias" in header.tensors,
        "mlp_bias": "blk.0.ffn_gate.bias" in header.tensors,
        "bos_token_id": header.metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": _end_ids(header),
    }
    scaling = _rope_scaling(header, fields, head_dim)
    return raw | ({"rope_scaling": scaling} if scaling else {})


def shortest(value: float) -> float:
    """The float with the fewest decimal digits that is the same in fp32: 1e-5 is stored as 9.99999974e-06."""
    stored = struct.pack("<f", value)
    digits = (float(f"{value:.{count}g}") for count in range(6, 10))
    return next((each for each in digits if struct.pack("<f", each) == stored), value)


class _Fields:
    """The keys of one architecture, typed."""

    def __init__(self, header: GgufHeader, architecture: str) -> None:
        self.path, self.architecture, self._metadata = header.path, architecture, header.metadata

    def get(self, key: str) -> Any:
        return self._metadata.get(f"{self.architecture}.{key}")

    def integer(self, key: str, default: int | None = None) -> int:
        value = self.get(key)
        value = default if value is None else value
        if isinstance(value, GgufArray):
            raise UnsupportedFeature(f"{self.path}: {self._name(key)} differs by layer", feature=f"gguf:{key}")
        if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
            raise ModelError(f"{self.path}: {self._name(key)} must be an integer above zero, got {value!r}")
        return value

    def real(self, key: str, default: float | None = None) -> float:
        value = self.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
            raise ModelError(f"{self.path}: {self._name(key)} must be a number above zero, got {value!r}")
        return shortest(float(value))

    def _name(self, key: str) -> str:
        return f"{self.architecture}.{key}"


def _architecture(header: GgufHeader) -> str:
    kind = header.metadata.get("general.type", "model")
    if kind != "model":
        raise UnsupportedFeature(f"{header.path} holds a GGUF of type {kind!r}, not a model", feature=f"gguf:{kind}")
    name = header.metadata.get("general.architecture")
    if not isinstance(name, str):
        raise ModelError(f"{header.path}: general.architecture must be text, got {name!r}")
    if name not in _CLASSES:
        known = list(_CLASSES)
        raise UnknownArchitecture(
            f"{header.path}: GGUF architecture {name!r} is not supported{nearest(name, known) or '.'} Known: {', '.join(known)}"
        )
    return name


def _head_dim(fields: _Fields, hidden: int, heads: int, kv_heads: int) -> int:
    path, name = fields.path, fields.architecture
    if heads % kv_heads:
        raise ModelError(
            f"{path} contradicts itself: {name}.attention.head_count {heads} is not a multiple of head_count_kv {kv_heads}"
        )
    if fields.get("attention.key_length") is None and hidden % heads:
        raise ModelError(
            f"{path} contradicts itself: {name}.embedding_length {hidden} is not a multiple of head_count {heads} and there "
            f"is no attention.key_length"
        )
    head_dim = fields.integer("attention.key_length", hidden // heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        other = fields.integer(key, head_dim)
        if other != head_dim:
            raise UnsupportedFeature(f"{path}: {name}.{key} {other} beside heads of {head_dim}", feature=f"gguf:{key}")
    if head_dim % 2:
        raise ModelError(f"{path}: heads of {head_dim} values cannot be rotated: the size must be even")
    return head_dim


def _refuse_variants(fields: _Fields, context: int) -> None:
    window = fields.get("attention.sliding_window")
    if isinstance(window, int) and 0 < window < context:
        raise UnsupportedFeature(
            f"{fields.path}: a sliding window of {window} tokens is not read from GGUF", feature="gguf:sliding_window"
        )
    if fields.get("expert_count"):
        raise UnsupportedFeature(
            f"{fields.path}: {fields.get('expert_count')} experts are not read from GGUF; use the safetensors folder",
            feature="gguf:experts",
        )


def _vocab_size(header: GgufHeader, fields: _Fields) -> int:
    tokens, table = header.metadata.get("tokenizer.ggml.tokens"), header.tensors.get("token_embd.weight")
    found = {
        f"{fields.architecture}.vocab_size": fields.get("vocab_size"),
        "tokenizer.ggml.tokens": tokens.count if isinstance(tokens, GgufArray) else None,
        "token_embd.weight": table.shape[0] if table is not None else None,
    }
    given = {where: size for where, size in found.items() if size is not None}
    if not given:
        raise ModelError(f"{header.path}: the vocabulary's size is nowhere: no {', no '.join(found)}")
    if len(set(given.values())) > 1:
        sizes = ", ".join(f"{where} {size}" for where, size in given.items())
        raise ModelError(f"{header.path} contradicts itself about the vocabulary's size: {sizes}")
    return int(next(iter(given.values())))


def _end_ids(header: GgufHeader) -> list[int]:
    ids = (header.metadata.get(f"tokenizer.ggml.{name}_token_id") for name in _END_TOKENS)
    return list(dict.fromkeys(each for each in ids if isinstance(each, int)))


def _rope_scaling(header: GgufHeader, fields: _Fields, head_dim: int) -> dict[str, Any]:
    kind = fields.get("rope.scaling.type") or "none"
    factors = _rope_factors(header, head_dim)
    if factors:
        if kind not in ("none", "linear") or fields.get("rope.scaling.factor") not in (None, 1.0):
            raise UnsupportedFeature(f"{header.path}: {ROPE_FACTORS} beside {kind} scaling", feature="gguf:rope")
        return {"rope_type": "factors", "factors": factors}
    if kind == "none":
        return {}
    if kind == "linear":
        return {"rope_type": "linear", "factor": fields.real("rope.scaling.factor")}
    if kind == "yarn":
        original = fields.get("rope.scaling.original_context_length")
        scaling = {"rope_type": "yarn", "factor": fields.real("rope.scaling.factor")}
        return scaling | ({} if original is None else {"original_max_position_embeddings": original})
    raise UnsupportedFeature(f"{header.path}: rope scaling {kind!r} is not read from GGUF", feature=f"gguf:rope:{kind}")


def _rope_factors(header: GgufHeader, head_dim: int) -> list[float]:
    """Divisors of the frequencies; a few numbers that belong to the configuration, so they are read here."""
    tensor = header.tensors.get(ROPE_FACTORS)
    if tensor is None:
        return []
    if tensor.type_id != _F32 or tensor.shape != (head_dim // 2,):
        raise ModelError(
            f"{header.path}: {ROPE_FACTORS} must be {head_dim // 2} values in F32, got {list(tensor.shape)}"
        )
    with header.path.open("rb") as file:
        file.seek(tensor.offset)
        blob = file.read(4 * tensor.shape[0])
    if len(blob) < 4 * tensor.shape[0]:
        raise ModelError(f"{header.path} is truncated: {ROPE_FACTORS} ends after {tensor.offset + len(blob)} bytes")
    return list(struct.unpack(f"<{tensor.shape[0]}f", blob))
