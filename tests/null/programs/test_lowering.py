# SPDX-License-Identifier: Apache-2.0
"""Programs and Plans: buffers that never overlap while alive, weights that are all packed once, configurations that are checked."""

from __future__ import annotations

import itertools
import json
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ziggurat.errors import ModelError, UnknownArchitecture, UnsupportedFeature
from ziggurat.programs.architectures import ARCHITECTURES, build_program
from ziggurat.programs.config import load_config
from ziggurat.programs.formats import BF16, FP32, PANEL_WIDTH, Q4_0, Q8_0, FormatSpec
from ziggurat.programs.lifetimes import ALIGNMENT_BYTES, Interval, place
from ziggurat.programs.lower import Formats, lower
from ziggurat.programs.plan import Limits, LinearStep, Plan

BASE: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
LIMITS = Limits(max_model_len=256, max_num_seqs=4, max_num_batched_tokens=32)


def plan_of(**changes: Any) -> Plan:
    return lower(build_program({**BASE, **changes}), Formats(weight=BF16, kv=FP32), LIMITS)


intervals = st.dictionaries(
    st.text("abcdef", min_size=1, max_size=3),
    st.tuples(st.integers(0, 20), st.integers(1, 8), st.integers(1, 1000)).map(
        lambda t: Interval(first=t[0], last=t[0] + t[1], num_bytes=t[2])
    ),
    max_size=12,
)


@given(intervals)
def test_buffers_alive_together_never_overlap(spans):
    offsets, total = place(spans)
    names = list(spans)
    for i, a in enumerate(names):
        assert offsets[a] % ALIGNMENT_BYTES == 0
        assert offsets[a] + spans[a].num_bytes <= total
        for b in names[:i]:
            disjoint = offsets[a] + spans[a].num_bytes <= offsets[b] or offsets[b] + spans[b].num_bytes <= offsets[a]
            assert disjoint or not spans[a].overlaps(spans[b])


@given(intervals)
def test_placement_is_between_the_live_maximum_and_the_sum(spans):
    _, total = place(spans)
    rounded = {name: -(-span.num_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES for name, span in spans.items()}
    live = max((sum(rounded[n] for n, s in spans.items() if s.first <= t < s.last) for t in range(30)), default=0)
    assert live <= total <= sum(rounded.values())


@pytest.mark.parametrize("architecture", ARCHITECTURES.names() or ["LlamaForCausalLM"])
@pytest.mark.parametrize("tied", [False, True])
def test_every_weight_is_packed_exactly_once(architecture, tied):
    plan = plan_of(architectures=[architecture], tie_word_embeddings=tied)
    packed = [source for weight in plan.weights.values() for source, _ in weight.sources]
    stored = [name for name, spec in plan.program.weights.items() if spec.tied_to is None]
    assert sorted(packed) == sorted(stored)
    places = sorted((w.offset, w.num_bytes) for w in plan.weights.values())
    for (start, size), (following, _) in itertools.pairwise(places):
        assert start + size <= following
    assert places[-1][0] + places[-1][1] <= plan.weight_bytes


def test_sizes_by_hand():
    plan = plan_of(tie_word_embeddings=True)
    padded_vocab = -(-100 // PANEL_WIDTH) * PANEL_WIDTH
    matrices = padded_vocab * 64 + 3 * (64 * (64 + 32 + 32) + 64 * 64 + 192 * 64 + 64 * 96)
    vectors = 3 * 2 * 64 + 64
    payload = 2 * matrices + 4 * vectors
    assert payload <= plan.weight_bytes <= payload + 5 * 4096 + 64 * len(plan.weights)
    assert plan.kv_bytes_per_token() == 3 * 2 * 2 * 16 * 4
    assert plan.buffers["residual"].num_bytes == 32 * 64 * 4
    assert plan.buffers["logits"].num_bytes == 4 * 100 * 4


@pytest.mark.parametrize(("spec", "block_bytes"), [(Q8_0, 34), (Q4_0, 18)], ids=["q8_0", "q4_0"])
def test_sizes_of_quantized_weights_by_hand(spec: FormatSpec, block_bytes: int) -> None:
    """34 or 18 bytes per 32 values, embedding and head included; rows padded to whole panels."""
    program = build_program({**BASE, "tie_word_embeddings": True})
    plan = lower(program, Formats(weight=spec, kv=FP32), LIMITS)
    matrices = 112 * 64 + 3 * (64 * (64 + 32 + 32) + 64 * 64 + 192 * 64 + 64 * 96)
    assert sum(w.num_bytes for w in plan.weights.values() if w.layout == "panels") == matrices // 32 * block_bytes
    assert {w.format.name for w in plan.weights.values() if w.layout == "vector"} == {"fp32"}
    steps = [step for step in plan.steps if isinstance(step, LinearStep)]
    # A row of K values takes K bytes, and 8 for the scale and the sum of each 32.
    for step in steps:
        assert step.scratch is not None
        rows = 4 if step.out == "logits" else 32
        assert plan.buffers[step.scratch].num_bytes == rows * plan.weights[step.weight].in_features * 40 // 32
    assert all(step.scratch is None for step in plan_of().steps if isinstance(step, LinearStep))


@given(data=st.data())
def test_scratch_never_lies_on_what_a_quantized_linear_touches(data: st.DataObject) -> None:
    """Head and intermediate sizes of all sorts: the rows that are read, those that are written, and the scratch are disjoint."""
    changes = {
        "intermediate_size": 32 * data.draw(st.integers(1, 9)),
        "vocab_size": data.draw(st.integers(1, 300)),
        "num_hidden_layers": data.draw(st.integers(1, 3)),
    }
    plan = lower(build_program({**BASE, **changes}), Formats(weight=Q4_0, kv=FP32), LIMITS)
    for step in plan.steps:
        if isinstance(step, LinearStep):
            assert step.scratch is not None
            spans = sorted(
                (b.offset, b.offset + b.num_bytes) for b in (plan.buffers[n] for n in (step.x, step.out, step.scratch))
            )
            assert all(first[1] <= second[0] for first, second in itertools.pairwise(spans))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"intermediate_size": 100}, r"'model.layers.0.mlp.down_proj.weight' have 100 values, .* multiple of 32"),
        ({"architectures": ["MixtralForCausalLM"], "num_local_experts": 4}, "linears of 4 experts per layer"),
    ],
)
def test_what_cannot_be_quantized_is_refused_by_name(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UnsupportedFeature, match=words):
        lower(build_program({**BASE, **changes}), Formats(weight=Q8_0, kv=FP32), LIMITS)


def test_every_step_names_known_buffers_and_weights():
    plan = plan_of(architectures=["Qwen3ForCausalLM"])
    known = {*plan.buffers, *plan.weights}
    for step in plan.steps:
        for spec in fields(step):
            value = getattr(step, spec.name)
            if isinstance(value, str) and spec.name != "function":
                assert value in known, (step, spec.name)


def test_residual_additions_are_fused():
    steps = [step for step in plan_of().steps if isinstance(step, LinearStep)]
    assert sum(step.accumulate for step in steps) == 6
    assert len(steps) == 3 * 4 + 1


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"architectures": ["LamaForCausalLM"]}, UnknownArchitecture, "did you mean 'LlamaForCausalLM'"),
        ({"architectures": None}, ModelError, "lacks 'architectures'"),
        ({"num_key_value_heads": 3}, ModelError, "4 is not a multiple of num_key_value_heads 3"),
        ({"hidden_size": 66}, ModelError, "66 is not a multiple of num_attention_heads 4"),
        ({"hidden_size": "64"}, ModelError, "hidden_size must be an integer"),
        ({"vocab_size": None}, ModelError, "lacks 'vocab_size'"),
        ({"num_hidden_layers": 0}, ModelError, "above zero, got 0"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 4}}, UnsupportedFeature, "'longrope'"),
        ({"rope_scaling": {"rope_type": "linear"}}, ModelError, "needs factor"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 4}}, ModelError, "above low_freq"),
        ({"hidden_act": "relu"}, UnsupportedFeature, "'relu'"),
        ({"rms_norm_eps": -1}, ModelError, "rms_norm_eps"),
    ],
)
def test_configurations_that_contradict_themselves(changes, error, words):
    raw = {key: value for key, value in {**BASE, **changes}.items() if value is not None}
    with pytest.raises(error, match=words):
        build_program(raw)


def test_layer_types_must_match_the_layer_count():
    raw = {**BASE, "architectures": ["Qwen2ForCausalLM"], "use_sliding_window": True, "sliding_window": 8}
    with pytest.raises(ModelError, match="2 layer types for 3 layers"):
        build_program({**raw, "layer_types": ["full_attention"] * 2})
    groups = build_program({**raw, "max_window_layers": 1}).kv_groups()
    assert [(g.layers, g.window) for g in groups] == [((0,), None), ((1, 2), 8)]


def test_custom_code_and_quantized_checkpoints_are_refused_by_name(tmp_path):
    for extra, words in (
        ({"auto_map": {"AutoModel": "x.Y"}}, "never runs code"),
        ({"quantization_config": {"quant_method": "gptq"}}, "'gptq'"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**BASE, **extra}))
        with pytest.raises(UnsupportedFeature, match=words):
            load_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="not valid JSON"):
        load_config(tmp_path)
