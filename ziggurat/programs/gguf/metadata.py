# SPDX-License-Identifier: Apache-2.0
"""A ``config.json`` as the metadata of a GGUF file; what llama.cpp could not compute in the same way is refused by name.

Source of keys and rules: llama.cpp's ``convert_hf_to_gguf.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ziggurat.errors import UnsupportedFeature
from ziggurat.programs.architectures.llama import MISTRAL_DEFAULTS, QWEN3_DEFAULTS, QWEN_DEFAULTS, qwen_windows
from ziggurat.programs.config import DecoderConfig, RawConfig, architecture_name, decoder_config
from ziggurat.programs.rope import plain_frequencies

Value = str | int | float | bool

_NAMES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
_DEFAULTS: Mapping[str, RawConfig] = {
    "LlamaForCausalLM": {},
    "MistralForCausalLM": MISTRAL_DEFAULTS,
    "Qwen2ForCausalLM": QWEN_DEFAULTS,
    "Qwen3ForCausalLM": QWEN3_DEFAULTS,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufModel:
    """What a file says of a model beside its weights.

    Attributes:
        architecture: GGUF's name.
        config: the checked configuration.
        metadata: keys and values; floats are fp32 there, integers u32.
        rope_factors: values of ``rope_freqs.weight``, or None.
        notes: what a user should be told: where the file promises less than the source.
    """

    architecture: str
    config: DecoderConfig
    metadata: Mapping[str, Value]
    rope_factors: tuple[float, ...] | None
    notes: tuple[str, ...]


def gguf_model(raw: RawConfig) -> GgufModel:
    """The metadata of a configuration, without the tokenizer's.

    Raises:
        UnsupportedFeature: llama.cpp has no such architecture, or computes it otherwise; named.
        ModelError: the configuration is wrong.
    """
    architecture = architecture_name(raw)
    if architecture not in _NAMES:
        raise UnsupportedFeature(
            f"architecture {architecture!r} is not exported to GGUF. Known: {', '.join(_NAMES)}",
            feature=f"gguf:{architecture}",
        )
    raw = {**_DEFAULTS[architecture], **raw}
    config = decoder_config(raw)
    _refuse(raw, config)
    context, notes = _context(raw, config)
    name = _NAMES[architecture]
    scaling, factors = _rope(raw, config)
    values: dict[str, Value] = {
        "context_length": context,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.dimension_count": config.head_dim,
        "rope.freq_base": config.rope.theta,
        "vocab_size": config.vocab_size,
        **scaling,
    }
    metadata = {f"{name}.{key}": value for key, value in values.items()}
    return GgufModel(architecture=name, config=config, metadata=metadata, rope_factors=factors, notes=notes)


def _refuse(raw: RawConfig, config: DecoderConfig) -> None:
    if config.hidden_act != "silu":
        raise UnsupportedFeature(
            f"llama.cpp has no {config.architecture} with activation {config.hidden_act!r}", feature="gguf:hidden_act"
        )
    if config.architecture.startswith("Qwen") and qwen_windows(raw) is not None:
        raise UnsupportedFeature("llama.cpp has no sliding window for Qwen models", feature="gguf:sliding_window")
    if config.architecture == "Qwen3ForCausalLM" and raw.get("attention_bias"):
        raise UnsupportedFeature("llama.cpp has no attention biases for Qwen3", feature="gguf:attention_bias")


def _context(raw: RawConfig, config: DecoderConfig) -> tuple[int, tuple[str, ...]]:
    """llama.cpp computes Mistral without its window: the same, as long as no sequence is longer than that."""
    window = raw.get("sliding_window") if config.architecture == "MistralForCausalLM" else None
    if not window or window >= config.max_position_embeddings:
        return config.max_position_embeddings, ()
    note = (
        f"the context is {window} tokens in the file, not {config.max_position_embeddings}: beyond the sliding window "
        f"llama.cpp would compute something else"
    )
    return int(window), (note,)


def _rope(raw: RawConfig, config: DecoderConfig) -> tuple[dict[str, Value], tuple[float, ...] | None]:
    parameters = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    rope = config.rope
    if rope.kind == "linear":
        return {"rope.scaling.type": "linear", "rope.scaling.factor": float(parameters["factor"])}, None
    if rope.kind == "yarn":
        custom = [
            key for key in ("beta_fast", "beta_slow", "attention_factor", "mscale", "truncate") if key in parameters
        ]
        if custom:
            raise UnsupportedFeature(f"yarn with {', '.join(custom)} is not exported to GGUF", feature="gguf:yarn")
        original = int(parameters.get("original_max_position_embeddings") or config.max_position_embeddings)
        return {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": float(parameters["factor"]),
            "rope.scaling.original_context_length": original,
        }, None
    plain = plain_frequencies(rope.theta, rope.dim)
    factors = tuple(before / after for before, after in zip(plain, rope.frequencies, strict=True))
    return {}, None if all(factor == 1.0 for factor in factors) else factors
