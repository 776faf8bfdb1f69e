# SPDX-License-Identifier: Apache-2.0
"""Gemma 2 and 3 (text): norms before and after each block with weights 1 + w, scaled embeddings, alternating windows.

Gemma 2 caps attention scores and logits softly and slides on every other layer; Gemma 3 norms q and k, slides on five of six
layers, and rotates those with a base of their own. Source: Hugging Face transformers' modeling_gemma2 and modeling_gemma3;
checked against them in the tests.
"""

from __future__ import annotations

from typing import Any

from ziggurat.errors import ModelError, UnsupportedFeature
from ziggurat.programs.architectures.builder import Variant, decoder, layer_windows
from ziggurat.programs.architectures.registry import ARCHITECTURES
from ziggurat.programs.config import RawConfig, decoder_config, positive_int
from ziggurat.programs.program import Mode, Program
from ziggurat.programs.rope import rope_spec

_COMMON: RawConfig = {
    "head_dim": 256,
    "num_key_value_heads": 4,
    "tie_word_embeddings": True,
    "sliding_window": 4096,
    "query_pre_attn_scalar": 256,
}
_GEMMA2_DEFAULTS: RawConfig = {
    **_COMMON,
    "max_position_embeddings": 8192,
    "final_logit_softcapping": 30.0,
    "attn_logit_softcapping": 50.0,
}
_GEMMA3_DEFAULTS: RawConfig = {**_COMMON, "max_position_embeddings": 131072}
_GEMMA3_THETA, _GEMMA3_WINDOW_THETA = 1_000_000.0, 10_000.0


def _variant(raw: RawConfig, **changes: Any) -> Variant:
    if raw.get("use_bidirectional_attention"):
        raise UnsupportedFeature("use_bidirectional_attention is not supported", feature="use_bidirectional_attention")
    bias = bool(raw.get("attention_bias", False))
    return Variant(
        qkv_bias=bias,
        out_bias=bias,
        norm_offset=1.0,
        post_norms=True,
        embed_scale=positive_int(raw, "hidden_size") ** 0.5,
        query_scale=positive_int(raw, "query_pre_attn_scalar") ** -0.5,
        attention_softcap=_cap(raw, "attn_logit_softcapping"),
        logit_softcap=_cap(raw, "final_logit_softcapping"),
        **changes,
    )


def _cap(raw: RawConfig, key: str) -> float | None:
    value = raw.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
        raise ModelError(f"config.json: {key} must be a number above zero or null, got {value!r}")
    return float(value)


def _with_activation(raw: RawConfig) -> RawConfig:
    # The classes read hidden_activation only; published files carry a hidden_act beside it that means nothing.
    return {**raw, "hidden_act": raw.get("hidden_activation") or "gelu_pytorch_tanh"}


@ARCHITECTURES.register("Gemma2ForCausalLM")
def gemma2(raw: RawConfig, mode: Mode = "serve") -> Program:
    """Gemma 2."""
    raw = _with_activation({**_GEMMA2_DEFAULTS, **raw})
    windows = layer_windows(raw, raw["sliding_window"], lambda i: i % 2 == 0)
    return decoder(decoder_config(raw, windows), _variant(raw), mode)


@ARCHITECTURES.register("Gemma3ForCausalLM")
def gemma3(raw: RawConfig, mode: Mode = "serve") -> Program:
    """Gemma 3, text only."""
    raw = _with_activation({**_GEMMA3_DEFAULTS, **raw})
    pattern = raw.get("sliding_window_pattern", 6)
    windows = layer_windows(raw, raw["sliding_window"], lambda i: (i + 1) % pattern != 0)
    by_kind = raw.get("rope_parameters") or {}
    full = by_kind.get("full_attention") or {**(raw.get("rope_scaling") or {})}
    full = {"rope_theta": raw.get("rope_theta", _GEMMA3_THETA), **full}
    windowed = by_kind.get("sliding_attention") or {}
    theta = windowed.get("rope_theta", raw.get("rope_local_base_freq", _GEMMA3_WINDOW_THETA))
    config = decoder_config({**raw, "rope_parameters": full}, windows)
    if isinstance(theta, bool) or not isinstance(theta, (int, float)) or theta <= 1:
        raise ModelError(f"config.json: the rope base of windowed layers must be a number above 1, got {theta!r}")
    window_rope = rope_spec(float(theta), config.head_dim, windowed, config.max_position_embeddings)
    return decoder(config, _variant(raw, qk_norm=True, window_rope=window_rope), mode)
