# SPDX-License-Identifier: Apache-2.0
"""Published models as Programs and Plans: parameter counts, fused experts, windows with ropes of their own, old and new spellings."""

from __future__ import annotations

from typing import Any

import pytest

from tests.null.programs.test_lowering import BASE, LIMITS, plan_of
from ziggurat.errors import ModelError, UnsupportedFeature
from ziggurat.programs import ops
from ziggurat.programs.architectures import build_program
from ziggurat.programs.checkpoint import TensorEntry, match_program
from ziggurat.programs.plan import AddStep, CombineStep, GroupedLinearStep, QKVStep, RouteStep, SoftCapStep

MOE: dict[str, Any] = {"architectures": ["MixtralForCausalLM"], "num_local_experts": 4, "num_experts_per_tok": 2}
GEMMA2: dict[str, Any] = {"architectures": ["Gemma2ForCausalLM"], "sliding_window": 32}
PUBLISHED: list[tuple[int, dict[str, Any]]] = [
    (
        46_702_792_704,  # mistralai/Mixtral-8x7B-v0.1
        {
            "architectures": ["MixtralForCausalLM"],
            "vocab_size": 32000,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
        },
    ),
    (
        30_532_122_624,  # Qwen/Qwen3-30B-A3B
        {
            "architectures": ["Qwen3MoeForCausalLM"],
            "vocab_size": 151936,
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "moe_intermediate_size": 768,
            "num_hidden_layers": 48,
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
            "head_dim": 128,
            "num_experts": 128,
            "num_experts_per_tok": 8,
        },
    ),
    (
        2_614_341_888,  # google/gemma-2-2b
        {
            "architectures": ["Gemma2ForCausalLM"],
            "vocab_size": 256000,
            "hidden_size": 2304,
            "intermediate_size": 9216,
            "num_hidden_layers": 26,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
        },
    ),
    (
        999_885_952,  # google/gemma-3-1b-pt
        {
            "architectures": ["Gemma3ForCausalLM"],
            "vocab_size": 262144,
            "hidden_size": 1152,
            "intermediate_size": 6912,
            "num_hidden_layers": 26,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "sliding_window": 512,
        },
    ),
]


@pytest.mark.parametrize(("num_parameters", "raw"), PUBLISHED, ids=lambda each: str(each)[:30])
def test_published_models_have_their_published_parameters(num_parameters: int, raw: dict[str, Any]) -> None:
    assert build_program(raw).num_parameters() == num_parameters


def test_experts_become_one_stack_and_routed_rows() -> None:
    plan = plan_of(**MOE)
    gate_up, down = (step for step in plan.steps[:12] if isinstance(step, GroupedLinearStep))
    block = "model.layers.0.block_sparse_moe.experts"
    expected = [(f"{block}.{expert}.{part}.weight", 96) for expert in range(4) for part in ("w1", "w3")]
    assert list(plan.weights[gate_up.weight].sources) == expected
    assert (gate_up.is_routed, down.is_routed) == (False, True)
    for step in (gate_up, down):
        assert plan.buffers[step.out].max_rows == LIMITS.max_num_batched_tokens * 2
    assert sum(isinstance(step, RouteStep) and step.normalize for step in plan.steps) == 3
    # The sum over experts goes straight into the residual stream.
    combines = [step for step in plan.steps if isinstance(step, CombineStep)]
    assert [(step.out, step.accumulate) for step in combines] == [("residual", True)] * 3


def test_gemma_adds_after_its_norms_and_caps_in_place() -> None:
    plan = plan_of(**GEMMA2)
    assert sum(isinstance(step, AddStep) for step in plan.steps) == 6
    last = plan.steps[-1]
    assert isinstance(last, SoftCapStep) and last.cap == 30.0 and last.x == plan.logits
    attentions = [op for op in plan.program.ops() if isinstance(op, ops.Attention)]
    assert [op.window for op in attentions] == [32, None, 32]
    assert {op.softcap for op in attentions} == {50.0}


def test_gemma3_rotates_windowed_layers_by_their_own_base() -> None:
    gemma3 = {"architectures": ["Gemma3ForCausalLM"], "sliding_window": 32, "sliding_window_pattern": 3}
    old = plan_of(**gemma3, rope_theta=1e6, rope_local_base_freq=5e3, rope_scaling={"type": "linear", "factor": 8.0})
    assert [step.rope for step in old.steps if isinstance(step, QKVStep)] == [1, 1, 0]
    assert [(group.layers, group.window) for group in old.program.groups] == [((2,), None), ((0, 1), 32)]
    assert [(rope.theta, rope.kind) for rope in old.program.ropes] == [(1e6, "linear"), (5e3, "default")]
    assert old.table_bytes == 2 * old.program.ropes[0].table_bytes(LIMITS.max_model_len)
    by_kind = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 5e3},
    }
    assert plan_of(**gemma3, rope_parameters=by_kind) == old


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({**MOE, "num_experts_per_tok": 5}, ModelError, "num_experts_per_tok 5 of num_local_experts 4"),
        ({**MOE, "intermediate_size": 90}, UnsupportedFeature, "experts of width 90"),
        ({**MOE, "num_local_experts": 0}, ModelError, "above zero, got 0"),
        (
            {
                "architectures": ["Qwen3MoeForCausalLM"],
                "num_experts": 4,
                "num_experts_per_tok": 2,
                "mlp_only_layers": [1],
            },
            UnsupportedFeature,
            "dense layers between sparse ones",
        ),
        ({**GEMMA2, "final_logit_softcapping": 0}, ModelError, "final_logit_softcapping must be a number above zero"),
        ({**GEMMA2, "sliding_window": -4}, ModelError, "sliding_window must be an integer above zero"),
        ({**GEMMA2, "hidden_activation": "relu"}, UnsupportedFeature, "'relu'"),
    ],
)
def test_configurations_that_are_refused(changes: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        build_program({**BASE, **changes})


def test_gemma_ignores_a_hidden_act_that_its_classes_do_not_read() -> None:
    assert build_program({**BASE, **GEMMA2, "hidden_act": "silu"}) == build_program({**BASE, **GEMMA2})


@pytest.mark.parametrize("stored", [3, 6])
def test_a_wrong_number_of_experts_is_one_message(tmp_path: Any, stored: int) -> None:
    program, files = build_program({**BASE, **MOE}), build_program({**BASE, **MOE, "num_local_experts": stored})
    fmt = plan_of(**MOE).kv_format
    entries = {
        name: TensorEntry(path=tmp_path / "x", offset=0, num_bytes=0, format=fmt, shape=spec.shape)
        for name, spec in files.weights.items()
    }
    with pytest.raises(ModelError, match=f"says 4 experts per layer, the checkpoint has {stored}"):
        match_program(program, entries)
