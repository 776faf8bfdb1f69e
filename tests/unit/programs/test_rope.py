# SPDX-License-Identifier: Apache-2.0
"""Rotary frequencies against transformers' own initialisers."""

from __future__ import annotations

from typing import Any

import pytest

from ziggurat.programs.rope import rope_spec

transformers = pytest.importorskip("transformers", reason="the oracle is transformers: pip install '.[test]'")
np = pytest.importorskip("numpy")

CASES: list[dict[str, Any]] = [
    {"rope_type": "linear", "factor": 3.0},
    {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096},
    {
        "rope_type": "yarn",
        "factor": 40.0,
        "mscale": 0.7,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096,
    },
    {"rope_type": "yarn", "factor": 2.5, "attention_factor": 1.3, "beta_fast": 16, "beta_slow": 2, "truncate": False},
]


@pytest.mark.parametrize("parameters", CASES, ids=lambda p: f"{p['rope_type']}-{p['factor']}")
@pytest.mark.parametrize("theta", [10000.0, 500000.0])
def test_frequencies_equal_the_oracle(parameters, theta):
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = transformers.LlamaConfig(
        hidden_size=512,
        num_attention_heads=4,
        max_position_embeddings=16384,
        rope_parameters={**parameters, "rope_theta": theta},
    )
    expected, scaling = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config, device="cpu")
    ours = rope_spec(theta, 128, config.rope_parameters, 16384)
    np.testing.assert_allclose(ours.inverse_frequencies(), expected.numpy(), rtol=2e-6)
    assert ours.attention_scaling == pytest.approx(scaling, rel=1e-9)
