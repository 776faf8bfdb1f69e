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
from ziggurat.programs.formats import BF16, FP32, PANEL_WIDTH
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
