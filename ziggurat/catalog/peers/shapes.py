# SPDX-License-Identifier: Apache-2.0
"""Shapes of published models, filled with random weights: good for speed, not for anything else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ziggurat.programs.architectures import build_program

_LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "torch_dtype": "bfloat16",
}
SHAPES: dict[str, dict[str, Any]] = {
    # SmolLM-135M.
    "135m": {
        **_LLAMA,
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "rope_theta": 10000.0,
    },
    # Llama 3.2 1B, without its rope scaling, which changes no speed.
    "1.2b": {
        **_LLAMA,
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "rope_theta": 500000.0,
    },
}


def write_checkpoint(folder: Path, config: Mapping[str, Any]) -> None:
    """A Hugging Face folder in bf16 without a tokenizer: matrices drawn with standard deviation 0.02, norms 1.

    bf16, so that every peer computes with the same values, whatever format it stores them in.
    """
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, spec in build_program(config).weights.items():
        if spec.tied_to is not None:
            continue
        if spec.role == "vector":
            tensors[name] = torch.ones(spec.shape, dtype=torch.bfloat16)
        else:
            tensors[name] = torch.empty(spec.shape, dtype=torch.bfloat16).normal_(std=0.02, generator=generator)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(dict(config)), encoding="utf-8")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
