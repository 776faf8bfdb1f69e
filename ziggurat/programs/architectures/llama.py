# SPDX-License-Identifier: Apache-2.0
"""Llama and its close relatives: Mistral (sliding window), Qwen2 (biases on q, k, v), Qwen3 (norms on q and k).

Source of the computations: Hugging Face transformers' modeling files of the same names; checked against them in the tests.
"""

from __future__ import annotations

from ziggurat.programs.architectures.builder import Variant, decoder, layer_windows
from ziggurat.programs.architectures.registry import ARCHITECTURES
from ziggurat.programs.config import RawConfig, decoder_config
from ziggurat.programs.program import Mode, Program

# What transformers' configuration classes assume when config.json leaves a field out.
MISTRAL_DEFAULTS: RawConfig = {"num_key_value_heads": 8, "sliding_window": 4096, "max_position_embeddings": 131072}
QWEN_DEFAULTS: RawConfig = {"num_key_value_heads": 32, "sliding_window": 4096, "max_position_embeddings": 32768}
QWEN3_DEFAULTS: RawConfig = {"head_dim": 128, **QWEN_DEFAULTS}
_QWEN_MAX_WINDOW_LAYERS = 28


@ARCHITECTURES.register("LlamaForCausalLM")
def llama(raw: RawConfig, mode: Mode = "serve") -> Program:
    """Llama 1-3 shapes, with linear, llama3 and yarn rope scaling."""
    bias = bool(raw.get("attention_bias", False))
    variant = Variant(qkv_bias=bias, out_bias=bias, mlp_bias=bool(raw.get("mlp_bias", False)))
    return decoder(decoder_config(raw), variant, mode)


@ARCHITECTURES.register("MistralForCausalLM")
def mistral(raw: RawConfig, mode: Mode = "serve") -> Program:
    """Mistral: Llama with a sliding window on every layer (null switches it off)."""
    raw = {**MISTRAL_DEFAULTS, **raw}
    return decoder(decoder_config(raw, layer_windows(raw, raw["sliding_window"], lambda _: True)), Variant(), mode)


@ARCHITECTURES.register("Qwen2ForCausalLM")
def qwen2(raw: RawConfig, mode: Mode = "serve") -> Program:
    """Qwen2, 2.5: biases on q, k and v; the window counts only with ``use_sliding_window``, from ``max_window_layers`` on."""
    raw = {**QWEN_DEFAULTS, **raw}
    return decoder(decoder_config(raw, qwen_windows(raw)), Variant(qkv_bias=True), mode)


@ARCHITECTURES.register("Qwen3ForCausalLM")
def qwen3(raw: RawConfig, mode: Mode = "serve") -> Program:
    """Qwen3 dense: norms on each head of q and k before the rotation; explicit head_dim."""
    raw = {**QWEN3_DEFAULTS, **raw}
    bias = bool(raw.get("attention_bias", False))
    variant = Variant(qkv_bias=bias, out_bias=bias, qk_norm=True)
    return decoder(decoder_config(raw, qwen_windows(raw)), variant, mode)


def qwen_windows(raw: RawConfig) -> tuple[int | None, ...] | None:
    """Windows of the Qwen family: off unless asked for, then from ``max_window_layers`` on."""
    if not raw.get("use_sliding_window", False):
        return None
    first = int(raw.get("max_window_layers", _QWEN_MAX_WINDOW_LAYERS))
    return layer_windows(raw, raw["sliding_window"], lambda i: i >= first)
