# SPDX-License-Identifier: Apache-2.0
"""The interpreter against transformers on random weights, in both precisions of attention and with every Op."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from ziggurat.programs.architectures import build_program
from ziggurat.training.initial import random_weights
from ziggurat.training.interpreter import ProgramModel, causal_attention

COMMON = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "rope_theta": 10000.0,
}
SHAPES = {
    "llama": ("LlamaForCausalLM", {"tie_word_embeddings": True}),
    "mistral": ("MistralForCausalLM", {"tie_word_embeddings": False, "sliding_window": 16}),
    "qwen2": ("Qwen2ForCausalLM", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3ForCausalLM", {"tie_word_embeddings": False, "head_dim": 32}),
    "mixtral": ("MixtralForCausalLM", {"tie_word_embeddings": False, "num_local_experts": 5, "num_experts_per_tok": 2}),
    "qwen3_moe": (
        "Qwen3MoeForCausalLM",
        {
            "tie_word_embeddings": False,
            "head_dim": 16,
            "num_experts": 6,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "norm_topk_prob": True,
        },
    ),
    "gemma2": (
        "Gemma2ForCausalLM",
        {
            "tie_word_embeddings": True,
            "head_dim": 16,
            "query_pre_attn_scalar": 24,
            "sliding_window": 16,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        },
    ),
    "gemma3_text": (
        "Gemma3ForCausalLM",
        {
            "tie_word_embeddings": True,
            "head_dim": 16,
            "query_pre_attn_scalar": 24,
            "sliding_window": 16,
            "layer_types": ["sliding_attention", "full_attention"],
            "rope_local_base_freq": 5000.0,
        },
    ),
}


def reference_model(folder: Path, raw: dict[str, Any], weights: dict[str, torch.Tensor]) -> Any:
    """transformers' own reading of the same configuration and weights."""
    transformers = pytest.importorskip(
        "transformers", reason="transformers is needed as the oracle: pip install transformers"
    )
    (folder / "config.json").write_text(json.dumps(raw))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    assert type(model).__name__ == raw["architectures"][0]
    return model.eval()


@pytest.mark.parametrize("family", sorted(SHAPES))
@pytest.mark.filterwarnings("ignore")
def test_logits_equal_those_of_transformers(family: str, tmp_path: Path) -> None:
    architecture, options = SHAPES[family]
    raw = {**COMMON, "architectures": [architecture], "model_type": family, **options}
    program = build_program(raw, "train")
    weights = random_weights(program, 3)
    generator = torch.Generator().manual_seed(4)
    weights = {name: weight + 0.1 * torch.randn(weight.shape, generator=generator) for name, weight in weights.items()}
    model = ProgramModel(program)
    model.load_weights(weights)
    reference = reference_model(tmp_path, raw, weights)
    ids = torch.randint(0, 96, (2, 50), generator=generator)
    with torch.no_grad():
        expected = reference(ids).logits.reshape(100, 96)
        actual = model(ids)
        rows = torch.tensor([3, 99])
        assert torch.allclose(model(ids, rows), actual[rows], rtol=1e-5, atol=1e-6)
    assert (actual - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("length", [1, 7, 256, 300, 600])
@pytest.mark.parametrize("window", [None, 5, 290])
def test_strips_equal_torch_attention(length: int, window: int | None) -> None:
    generator = torch.Generator().manual_seed(length)
    q = torch.randn(2, 4, length, 16, generator=generator)
    k, v = (torch.randn(2, 2, length, 16, generator=generator) for _ in range(2))
    distance = torch.arange(length)[:, None] - torch.arange(length)[None, :]
    mask = (distance >= 0) & (distance < (window or length))
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0, enable_gqa=True)
    assert torch.allclose(causal_attention(q, k, v, window), expected, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "gemma2"])
def test_gradients_reach_every_weight(family: str) -> None:
    """Routers included: their gradient comes through the probabilities."""
    architecture, options = SHAPES[family]
    program = build_program(
        {**COMMON, "architectures": [architecture], **options, "tie_word_embeddings": True}, "train"
    )
    model = ProgramModel(program)
    model.load_weights(random_weights(program, 0))
    model(torch.randint(0, 96, (4, 30), generator=torch.Generator().manual_seed(1))).logsumexp(-1).sum().backward()
    for name, weight in model.named_weights().items():
        assert weight.grad is not None, name
        assert weight.grad.abs().max() > 0, name


def test_a_wrong_shape_is_named() -> None:
    program = build_program({**COMMON, "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True}, "train")
    weights = random_weights(program, 0)
    weights["model.norm.weight"] = torch.ones(3)
    with pytest.raises(ValueError, match="model.norm.weight"):
        ProgramModel(program).load_weights(weights)
