# SPDX-License-Identifier: Apache-2.0
"""From a configuration to a Fit: formats, limits and checks, on folders that hold headers and no weights."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import pytest

from ziggurat.engine.config import EngineConfig
from ziggurat.engine.sizing import open_model, size, size_request
from ziggurat.errors import ConfigError, DoesNotFit, ModelError, ModelNotFound
from ziggurat.programs.architectures import build_program
from ziggurat.units import GIB, MIB

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
}


def make_folder(folder: Path, stored: str | None = None, **changes: Any) -> Path:
    """A model folder: config.json and, with a stored dtype, a sparse safetensors file whose bytes are all holes."""
    raw = {**CONFIG, **changes}
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    if stored is None:
        return folder
    header, end = {}, 0
    for name, spec in build_program(raw).weights.items():
        if spec.tied_to is None:
            start, end = end, end + math.prod(spec.shape) * {"F32": 4, "BF16": 2, "F16": 2}[stored]
            header[name] = {"dtype": stored, "shape": list(spec.shape), "data_offsets": [start, end]}
    blob = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(blob)) + blob)
        file.truncate(8 + len(blob) + end)
    return folder


def config(folder: Path, **changes: Any) -> EngineConfig:
    return EngineConfig(**{"model": str(folder), "load_format": "dummy", **changes})


@pytest.mark.parametrize(("dtype", "name"), [("F32", "fp32"), ("BF16", "bf16"), ("F16", "fp16")])
def test_auto_keeps_the_checkpoints_format(tmp_path: Path, dtype: str, name: str) -> None:
    source = open_model(config(make_folder(tmp_path, dtype), load_format="auto"))
    assert (source.formats.weight.name, source.formats.kv.name) == (name, name)
    assert source.tensors["model.norm.weight"].shape == (128,)


def test_a_format_that_is_asked_for_wins(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, "BF16")
    source = open_model(config(folder, load_format="auto", dtype="float32", kv_cache_dtype="fp16"))
    assert (source.formats.weight.name, source.formats.kv.name) == ("fp32", "fp16")


@pytest.mark.parametrize(
    ("changes", "name"), [({}, "fp32"), ({"dtype": "bfloat16"}, "bf16"), ({"torch_dtype": "float16"}, "fp16")]
)
def test_dummy_weights_have_the_declared_format(tmp_path: Path, changes: dict[str, Any], name: str) -> None:
    source = open_model(config(make_folder(tmp_path, **changes)))
    assert source.formats.weight.name == name
    assert source.tensors == {}


@pytest.mark.parametrize("name", ["q8_0", "q4_0"])
def test_quantized_weights_leave_the_kv_cache_plain(tmp_path: Path, name: str) -> None:
    source = open_model(config(make_folder(tmp_path, "BF16"), load_format="auto", quantization=name))
    assert (source.formats.weight.name, source.formats.kv.name) == (name, "bf16")
    source = open_model(config(tmp_path, load_format="auto", quantization=name, dtype="float32"))
    assert (source.formats.weight.name, source.formats.kv.name) == (name, "fp32")
    plain = open_model(config(tmp_path, load_format="auto", quantization="none"))
    assert (plain.formats.weight.name, plain.formats.kv.name) == ("bf16", "bf16")


def test_an_unknown_quantization_is_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="quantization must be one of auto, none, q8_0, q4_0, got 'q8'.*'q8_0'"):
        config(tmp_path, quantization="q8")


def test_weights_are_checked_before_anything_is_sized(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="holds no"):
        open_model(config(make_folder(tmp_path), load_format="auto"))
    make_folder(tmp_path, "BF16")
    raw = {**CONFIG, "num_hidden_layers": 3}
    (tmp_path / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    with pytest.raises(ModelError, match=r"lacks tensor 'model\.layers\.2"):
        open_model(config(tmp_path, load_format="auto"))


def test_settings_reach_the_plan(tmp_path: Path) -> None:
    asked = config(make_folder(tmp_path), max_model_len="256", max_num_seqs=3, max_num_batched_tokens=40, block_size=8)
    limits = size(asked, open_model(asked), GIB).plan.limits
    assert (limits.max_model_len, limits.max_num_seqs, limits.max_num_batched_tokens, limits.block_size) == (
        *(256, 3),
        *(40, 8),
    )


@pytest.mark.parametrize("asked", [None, "auto"])
def test_no_context_length_takes_the_models(tmp_path: Path, asked: str | None) -> None:
    settings = config(make_folder(tmp_path), max_model_len=asked)
    assert size(settings, open_model(settings), GIB).plan.limits.max_model_len == 1024


def test_a_context_beyond_the_model_is_refused(tmp_path: Path) -> None:
    asked = config(make_folder(tmp_path), max_model_len=1025)
    with pytest.raises(ConfigError, match="max_model_len 1025 is above the 1024 positions"):
        size_request(asked, open_model(asked), GIB)


def test_the_tokenizer_counts(tmp_path: Path) -> None:
    asked = config(make_folder(tmp_path))
    source = open_model(asked)
    before = size_request(asked, source, GIB).overhead_bytes
    (tmp_path / "tokenizer.json").write_bytes(b" " * MIB)
    assert size_request(asked, source, GIB).overhead_bytes > before + MIB


def test_a_budget_that_is_too_small(tmp_path: Path) -> None:
    asked = config(make_folder(tmp_path))
    with pytest.raises(DoesNotFit, match="raise --memory to"):
        size(asked, open_model(asked), MIB)
