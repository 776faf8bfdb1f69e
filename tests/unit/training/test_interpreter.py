# SPDX-License-Identifier: Apache-2.0
"""The interpreter against transformers on random weights, in both precisions of attention and with every Op."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

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
}


def reference_model(family: str, raw: dict[str, Any]) -> Any:
    transformers = pytest.importorskip(
        "transformers", reason="transformers is needed as the oracle: pip install transformers"
    )
    options = {key: value for key, value in raw.items() if key not in ("architectures", "model_type", "rope_theta")}
    config = transformers.AutoConfig.for_model(
        family, **options, rope_parameters={"rope_type": "default", "rope_theta": raw["rope_theta"]}
    )
    config._attn_implementation = "eager"
    return transformers.AutoModelForCausalLM.from_config(config).eval().float()


@pytest.mark.parametrize("family", sorted(SHAPES))
@pytest.mark.filterwarnings("ignore")
def test_logits_equal_those_of_transformers(family: str) -> None:
    architecture, options = SHAPES[family]
    raw = {**COMMON, "architectures": [architecture], "model_type": family, **options}
    program = build_program(raw, "train")
    weights = random_weights(program, 3)
    generator = torch.Generator().manual_seed(4)
    weights = {name: weight + 0.1 * torch.randn(weight.shape, generator=generator) for name, weight in weights.items()}
    model = ProgramModel(program)
    model.load_weights(weights)
    reference = reference_model(family, raw)
    missing, unexpected = reference.load_state_dict(weights, strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}
    reference.tie_weights()
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


def test_gradients_reach_every_weight() -> None:
    program = build_program({**COMMON, "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True}, "train")
    model = ProgramModel(program)
    model.load_weights(random_weights(program, 0))
    model(torch.randint(0, 96, (1, 20))).logsumexp(-1).sum().backward()
    for name, weight in model.named_weights().items():
        assert weight.grad is not None, name
        assert weight.grad.abs().max() > 0, name


def test_a_wrong_shape_is_named() -> None:
    program = build_program({**COMMON, "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True}, "train")
    weights = random_weights(program, 0)
    weights["model.norm.weight"] = torch.ones(3)
    with pytest.raises(ValueError, match="model.norm.weight"):
        ProgramModel(program).load_weights(weights)
