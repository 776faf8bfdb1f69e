# SPDX-License-Identifier: Apache-2.0
"""Mixtures of experts: Mixtral and Qwen3-MoE. Every expert is a Llama feed-forward; a router picks ``top_k`` per token.

Source of the computations: Hugging Face transformers' modeling files of the same names; checked against them in the tests.
"""

from __future__ import annotations

from typing import Any

from ziggurat.errors import ModelError, UnsupportedFeature
from ziggurat.programs.architectures.builder import Variant, decoder, experts_feed_forward, layer_windows
from ziggurat.programs.architectures.llama import QWEN_DEFAULTS, qwen_windows
from ziggurat.programs.architectures.registry import ARCHITECTURES
from ziggurat.programs.config import RawConfig, decoder_config, positive_int
from ziggurat.programs.program import Mode, Program

_MIXTRAL_DEFAULTS: RawConfig = {
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "sliding_window": None,
}
_QWEN3_MOE_DEFAULTS: RawConfig = {
    **QWEN_DEFAULTS,
    "num_key_value_heads": 4,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
}


def _routing(raw: RawConfig, experts_key: str, width_key: str) -> dict[str, Any]:
    num_experts, top_k = positive_int(raw, experts_key), positive_int(raw, "num_experts_per_tok")
    width, hidden = positive_int(raw, width_key), positive_int(raw, "hidden_size")
    if top_k > num_experts:
        raise ModelError(f"config.json contradicts itself: num_experts_per_tok {top_k} of {experts_key} {num_experts}")
    if width % 16 or hidden % 16:
        raise UnsupportedFeature(
            f"experts of width {width} on hidden size {hidden}: both must be multiples of 16", feature="expert width"
        )
    return {"num_experts": num_experts, "width": width, "top_k": top_k}


@ARCHITECTURES.register("MixtralForCausalLM")
def mixtral(raw: RawConfig, mode: Mode = "serve") -> Program:
    """Mixtral: the probabilities of the chosen experts are divided by their sum."""
    raw = {**_MIXTRAL_DEFAULTS, **raw}
    routing = _routing(raw, "num_local_experts", "intermediate_size")
    feed_forward = experts_feed_forward(block="block_sparse_moe", names=("w1", "w3", "w2"), normalize=True, **routing)
    windows = layer_windows(raw, raw["sliding_window"], lambda _: True)
    return decoder(decoder_config(raw, windows), Variant(feed_forward=feed_forward, top_k=routing["top_k"]), mode)


@ARCHITECTURES.register("Qwen3MoeForCausalLM")
def qwen3_moe(raw: RawConfig, mode: Mode = "serve") -> Program:
    """Qwen3-MoE: norms on q and k; ``norm_topk_prob`` says whether chosen probabilities are divided by their sum."""
    raw = {**_QWEN3_MOE_DEFAULTS, **raw}
    # The class calls the count num_experts, files written by newer versions num_local_experts.
    raw = {"num_local_experts": raw.get("num_experts", 128), **raw}
    if raw.get("mlp_only_layers") or raw.get("decoder_sparse_step", 1) != 1:
        raise UnsupportedFeature("dense layers between sparse ones are not supported", feature="mlp_only_layers")
    routing = _routing(raw, "num_local_experts", "moe_intermediate_size")
    feed_forward = experts_feed_forward(
        block="mlp",
        names=("gate_proj", "up_proj", "down_proj"),
        normalize=bool(raw.get("norm_topk_prob", False)),
        **routing,
    )
    bias = bool(raw.get("attention_bias", False))
    variant = Variant(qkv_bias=bias, out_bias=bias, qk_norm=True, feed_forward=feed_forward, top_k=routing["top_k"])
    return decoder(decoder_config({"intermediate_size": 1, **raw}, qwen_windows(raw)), variant, mode)
