# SPDX-License-Identifier: Apache-2.0
"""Metadata and configuration: there and back is the same Program; what contradicts itself or is not known is one error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ziggurat.errors import ModelError, UnknownArchitecture, UnsupportedFeature
from ziggurat.programs.architectures import build_program
from ziggurat.programs.gguf.config import config_from_gguf, shortest
from ziggurat.programs.gguf.header import GgufArray, GgufHeader, GgufTensor
from ziggurat.programs.gguf.metadata import gguf_model
from ziggurat.programs.gguf.names import gguf_name, hf_name, paired_heads, paired_row
from ziggurat.programs.gguf.tensors import tensors_from_gguf

BASE: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
CASES = {
    "llama": BASE,
    "untied": {**BASE, "tie_word_embeddings": False},
    "biases": {**BASE, "attention_bias": True, "mlp_bias": True},
    "qwen2": {**BASE, "architectures": ["Qwen2ForCausalLM"]},
    "qwen3": {**BASE, "architectures": ["Qwen3ForCausalLM"], "head_dim": 32},
    "linear": {**BASE, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "yarn": {**BASE, "rope_scaling": YARN},
}


def header_of(raw: dict[str, Any], **changes: Any) -> GgufHeader:
    """The header of an exported file, without the file; ``changes`` replace keys of the metadata, None removes one."""
    model = gguf_model(raw)
    program = build_program(raw)
    tensors = {}
    for name, spec in program.weights.items():
        if spec.tied_to is None:
            ours = gguf_name(name)
            assert ours is not None
            tensors[ours] = GgufTensor(type_id=0, shape=spec.shape, offset=0)
    pairs = {"general.architecture": model.architecture, "general.type": "model", **model.metadata, **changes}
    metadata = {key: value for key, value in pairs.items() if value is not None}
    return GgufHeader(path=Path("x.gguf"), file_bytes=1 << 30, header_bytes=0, metadata=metadata, tensors=tensors)


@pytest.mark.parametrize("name", sorted(CASES))
def test_there_and_back_is_the_same_program(name: str) -> None:
    raw = CASES[name]
    header = header_of(raw)
    assert build_program(config_from_gguf(header)) == build_program(raw)
    entries = tensors_from_gguf(header, config_from_gguf(header))
    assert set(entries) == {n for n, spec in build_program(raw).weights.items() if spec.tied_to is None}


def test_mistral_without_a_window_is_a_llama() -> None:
    raw = {**BASE, "architectures": ["MistralForCausalLM"], "sliding_window": None}
    found = build_program(config_from_gguf(header_of(raw)))
    assert found.layers == build_program(raw).layers and found.architecture == "LlamaForCausalLM"


def test_numbers_come_back_as_they_were_typed() -> None:
    import struct

    for value in (1e-5, 1e-6, 10000.0, 500000.0, 1e6, 0.1, 8.0):
        (stored,) = struct.unpack("<f", struct.pack("<f", value))
        assert shortest(stored) == value


def test_rows_lie_in_pairs() -> None:
    # Two heads of six rows: 0 3 1 4 2 5 | 6 9 7 10 8 11.
    stored = [0] * 12
    for row in range(12):
        stored[paired_row(row, 6)] = row
    assert stored == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]
    query, key, value = (f"model.layers.3.self_attn.{each}_proj.weight" for each in "qkv")
    assert [paired_heads("llama", name, 8, 2) for name in (query, key, value)] == [8, 2, 0]
    assert paired_heads("qwen2", query, 8, 2) == 0
    assert hf_name("blk.3.attn_q.weight") == query and gguf_name(query) == "blk.3.attn_q.weight"
    assert hf_name("blk.3.ffn_gate_exps.weight") is None and gguf_name("model.layers.0.other.weight") is None


STRINGS = GgufArray(kind=8, count=299, offset=0)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"general.architecture": "lama"}, UnknownArchitecture, r"'lama' is not supported.*llama"),
        ({"general.architecture": None}, ModelError, "general.architecture"),
        ({"general.type": "adapter"}, UnsupportedFeature, "adapter"),
        ({"llama.embedding_length": None}, ModelError, "llama.embedding_length"),
        ({"llama.attention.head_count": 3}, ModelError, "3 is not a multiple of head_count_kv 2"),
        ({"llama.attention.head_count": -4}, ModelError, "above zero, got -4"),
        ({"llama.attention.layer_norm_rms_epsilon": 0.0}, ModelError, "above zero, got 0.0"),
        ({"llama.attention.value_length": 8}, UnsupportedFeature, "value_length 8 beside heads of 16"),
        ({"llama.rope.dimension_count": 8}, UnsupportedFeature, "dimension_count 8"),
        ({"llama.attention.sliding_window": 64}, UnsupportedFeature, "window of 64"),
        ({"llama.expert_count": 8}, UnsupportedFeature, "8 experts"),
        ({"llama.rope.scaling.type": "longrope"}, UnsupportedFeature, "longrope"),
        ({"llama.feed_forward_length": GgufArray(kind=4, count=2, offset=0)}, UnsupportedFeature, "differs by layer"),
        ({"tokenizer.ggml.tokens": STRINGS}, ModelError, r"vocab_size 300, tokenizer.ggml.tokens 299"),
        ({"llama.vocab_size": 301}, ModelError, r"vocab_size 301, token_embd.weight 300"),
    ],
)
def test_what_is_wrong_is_said(changes: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        config_from_gguf(header_of(BASE, **changes))


def test_tensors_of_unknown_types_and_shapes_are_refused() -> None:
    header = header_of(BASE)
    raw = config_from_gguf(header)
    name = "blk.0.ffn_up.weight"
    for type_id, shape, error, words in (
        (13, (96, 64), UnsupportedFeature, r"stored as Q5_K; F32, F16, Q4_0, Q8_0, Q4_K, Q6_K, BF16 are read"),
        (999, (96, 64), UnsupportedFeature, "number 999"),
        (12, (96, 64), ModelError, "whole blocks of 256"),
        (0, (1 << 20, 1 << 20), ModelError, "truncated"),
    ):
        tensors = {**header.tensors, name: GgufTensor(type_id=type_id, shape=shape, offset=0)}
        changed = GgufHeader(
            path=header.path, file_bytes=1 << 30, header_bytes=0, metadata=header.metadata, tensors=tensors
        )
        with pytest.raises(error, match=words):
            tensors_from_gguf(changed, raw)
