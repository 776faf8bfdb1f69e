# SPDX-License-Identifier: Apache-2.0
"""Small Hugging Face folders with random weights, for tests: every architecture, sharded or not, any storage type."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
import torch
from safetensors.torch import save_file
from tokenizers import decoders, models, pre_tokenizers

from ziggurat.programs.architectures import build_program

VOCAB_SIZE = 300
EOS_ID = 1
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_BASE: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": EOS_ID,
}
_QWEN3_MOE: dict[str, Any] = {
    **_BASE,
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "head_dim": 32,
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 48,
}
_GEMMA: dict[str, Any] = {
    **_BASE,
    "head_dim": 32,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 48,
    "sliding_window": 24,
    "tie_word_embeddings": True,
}
# The original context is short enough that the rules bend most frequencies.
_ROPE_SCALING: dict[str, dict[str, Any]] = {
    "linear": {},
    "dynamic": {},
    "llama3": {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64},
    "yarn": {"original_max_position_embeddings": 64},
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {**_BASE, "architectures": ["LlamaForCausalLM"], "model_type": "llama"},
    "llama_tied": {**_BASE, "architectures": ["LlamaForCausalLM"], "model_type": "llama", "tie_word_embeddings": True},
    "mistral": {**_BASE, "architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 24},
    "qwen2": {**_BASE, "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "tie_word_embeddings": True},
    "qwen2_window": {
        **_BASE,
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 24,
        "max_window_layers": 1,
    },
    "qwen3": {**_BASE, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 32},
    "mixtral": {
        **_BASE,
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "num_local_experts": 5,
        "num_experts_per_tok": 2,
        "sliding_window": None,
    },
    "qwen3_moe": {**_QWEN3_MOE, "norm_topk_prob": False},
    "qwen3_moe_norm": {**_QWEN3_MOE, "norm_topk_prob": True},
    "gemma2": {
        **_GEMMA,
        "architectures": ["Gemma2ForCausalLM"],
        "model_type": "gemma2",
        "attn_logit_softcapping": 4.0,
        "final_logit_softcapping": 6.0,
    },
    "gemma3": {
        **_GEMMA,
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
    },
} | {
    f"llama_{kind}": {
        **_BASE,
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, "factor": 4.0, **parameters},
    }
    for kind, parameters in _ROPE_SCALING.items()
}


def make_tensors(
    config: Mapping[str, Any], *, dtype: torch.dtype = torch.float32, seed: int = 0
) -> dict[str, torch.Tensor]:
    """Random weights by Hugging Face name. Scaled so that logits differ clearly; norms are not all 1, biases not 0."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, spec in build_program(config).weights.items():
        if spec.tied_to is not None:
            continue
        values = torch.randn(spec.shape, generator=generator)
        if spec.role == "vector":
            values = values * 0.2 + (0.0 if name.endswith(".bias") else 1.0)
        else:
            values = values * (2.0 if spec.role == "embedding" else 1.5 * spec.shape[1] ** -0.5)
        tensors[name] = values.to(dtype)
    return tensors


def make_tokenizer() -> tokenizers.Tokenizer:
    """Byte-level, one token per byte plus a few merges; ids 0 and 1 are <s> and </s>."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {"<s>": 0, "</s>": EOS_ID} | {letter: 2 + index for index, letter in enumerate(alphabet)}
    merges = [("t", "h"), ("th", "e"), ("i", "n"), ("Ġ", "a")]
    for left, right in merges:
        vocab[left + right] = len(vocab)
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return tokenizer


def save_sharded(folder: Path, tensors: Mapping[str, torch.Tensor], num_shards: int) -> None:
    """Safetensors as Hugging Face writes them: one file, or shards with an index."""
    if num_shards == 1:
        save_file(dict(tensors), folder / "model.safetensors", metadata={"format": "pt"})
        return
    names, weight_map = list(tensors), {}
    for shard in range(num_shards):
        file = f"model-{shard + 1:05d}-of-{num_shards:05d}.safetensors"
        part = names[shard::num_shards]
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def write_checkpoint(
    folder: Path,
    config: str | Mapping[str, Any] = "llama",
    *,
    dtype: torch.dtype = torch.float32,
    num_shards: int = 1,
    seed: int = 0,
    with_tokenizer: bool = True,
) -> Path:
    """A complete model folder; returns it. ``config`` is a name in `CONFIGS` or a config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    raw = dict(CONFIGS[config] if isinstance(config, str) else config) | {
        "torch_dtype": str(dtype).removeprefix("torch.")
    }
    (folder / "config.json").write_text(json.dumps(raw))
    save_sharded(folder, make_tensors(raw, dtype=dtype, seed=seed), num_shards)
    if with_tokenizer:
        make_tokenizer().save(str(folder / "tokenizer.json"))
        options = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": CHAT_TEMPLATE}
        (folder / "tokenizer_config.json").write_text(json.dumps(options))
    return folder
