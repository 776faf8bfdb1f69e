# SPDX-License-Identifier: Apache-2.0
"""Reading ``config.json``: what was asked (the JSON), what is valid (checked here) and what follows (`DecoderConfig`)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ziggurat.errors import ModelError, ModelNotFound, UnsupportedFeature
from ziggurat.programs.rope import RopeSpec, rope_spec

RawConfig = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderConfig:
    """The checked configuration of a Llama-like decoder, by Hugging Face's names.

    Attributes:
        windows: per layer, the sliding window in tokens or None.
        dtype: the checkpoint's declared storage type ("bfloat16"), or None.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    hidden_act: str
    max_position_embeddings: int
    tie_word_embeddings: bool
    rope: RopeSpec
    windows: tuple[int | None, ...]
    dtype: str | None


def load_config(folder: Path) -> dict[str, Any]:
    """The parsed ``config.json`` of a Hugging Face folder.

    Raises:
        ModelNotFound: there is no such file.
        ModelError: it is not a JSON object.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ModelNotFound(
            f"{folder} has no config.json: a model folder holds config.json, *.safetensors and tokenizer.json"
        )
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(raw, dict):
        raise ModelError(f"{path} must hold a JSON object, not {type(raw).__name__}")
    if raw.get("auto_map"):
        raise UnsupportedFeature(
            f"{path} asks for custom code (auto_map, trust_remote_code); Ziggurat never runs code from a checkpoint",
            feature="trust_remote_code",
        )
    if raw.get("quantization_config"):
        method = raw["quantization_config"].get("quant_method", "?")
        raise UnsupportedFeature(
            f"{path} declares quantization method {method!r}; only fp32, bf16 and fp16 checkpoints are read",
            feature=f"quantization:{method}",
        )
    return raw


def positive_int(raw: RawConfig, key: str, default: int | None = None) -> int:
    """An integer above zero.

    Raises:
        ModelError: absent without a default, of another type, or not above zero.
    """
    value = raw.get(key)
    if value is None:
        value = default
    if value is None:
        raise ModelError(f"config.json lacks {key!r}")
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise ModelError(f"config.json: {key} must be an integer above zero, got {value!r}")
    return value


def _rope_spec(raw: RawConfig, head_dim: int) -> RopeSpec:
    # transformers 5 writes rope_parameters; older files have rope_theta and rope_scaling side by side.
    parameters = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    theta = parameters.get("rope_theta", raw.get("rope_theta", 10000.0))
    partial = parameters.get("partial_rotary_factor", raw.get("partial_rotary_factor", 1.0))
    if isinstance(theta, bool) or not isinstance(theta, (int, float)) or theta <= 1:
        raise ModelError(f"config.json: rope_theta must be a number above 1, got {theta!r}")
    if partial not in (None, 1, 1.0):
        raise UnsupportedFeature(f"partial_rotary_factor {partial} is not supported", feature="partial_rotary_factor")
    if head_dim % 2:
        raise ModelError(f"config.json: head_dim must be even for rotary embeddings, got {head_dim}")
    return rope_spec(float(theta), head_dim, parameters, positive_int(raw, "max_position_embeddings", 2048))


def _head_sizes(raw: RawConfig) -> tuple[int, int, int, int]:
    hidden_size = positive_int(raw, "hidden_size")
    num_heads = positive_int(raw, "num_attention_heads")
    num_kv_heads = positive_int(raw, "num_key_value_heads", num_heads)
    if num_heads % num_kv_heads:
        raise ModelError(
            f"config.json contradicts itself: num_attention_heads {num_heads} is not a multiple of num_key_value_heads "
            f"{num_kv_heads}"
        )
    if raw.get("head_dim") is None and hidden_size % num_heads:
        raise ModelError(
            f"config.json contradicts itself: hidden_size {hidden_size} is not a multiple of num_attention_heads {num_heads} "
            f"and no head_dim is given"
        )
    return hidden_size, num_heads, num_kv_heads, positive_int(raw, "head_dim", hidden_size // num_heads)


def decoder_config(raw: RawConfig, windows: tuple[int | None, ...] | None = None) -> DecoderConfig:
    """Checks a raw configuration.

    Args:
        raw: the parsed config.json.
        windows: per-layer sliding windows, decided by the architecture; None means full attention everywhere.

    Raises:
        ModelError: a field is absent, of a wrong type or contradicts another.
        UnsupportedFeature: a known variant that is not built.
    """
    hidden_size, num_heads, num_kv_heads, head_dim = _head_sizes(raw)
    num_layers = positive_int(raw, "num_hidden_layers")
    if windows is not None and len(windows) != num_layers:
        raise ModelError(f"config.json contradicts itself: {len(windows)} layer types for {num_layers} layers")
    eps = raw.get("rms_norm_eps", 1e-6)
    if not isinstance(eps, (int, float)) or eps <= 0:
        raise ModelError(f"config.json: rms_norm_eps must be a number above zero, got {eps!r}")
    activation = raw.get("hidden_act", "silu")
    if activation not in ("silu", "gelu_pytorch_tanh"):
        raise UnsupportedFeature(f"activation {activation!r} is not supported", feature=f"hidden_act:{activation}")
    return DecoderConfig(
        architecture=architecture_name(raw),
        vocab_size=positive_int(raw, "vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=positive_int(raw, "intermediate_size"),
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_kv_heads,
        head_dim=head_dim,
        rms_norm_eps=float(eps),
        hidden_act=activation,
        max_position_embeddings=positive_int(raw, "max_position_embeddings", 2048),
        tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
        rope=_rope_spec(raw, head_dim),
        windows=windows or (None,) * num_layers,
        dtype=raw.get("dtype") or raw.get("torch_dtype"),
    )


def architecture_name(raw: RawConfig) -> str:
    """The first entry of ``architectures``.

    Raises:
        ModelError: there is none.
    """
    names = raw.get("architectures")
    if not isinstance(names, (list, tuple)) or not names or not isinstance(names[0], str):
        raise ModelError(
            "config.json lacks 'architectures': a list with the model's class name, for example LlamaForCausalLM"
        )
    return names[0]
