# SPDX-License-Identifier: Apache-2.0
"""Checkpoints into the packed arena: every value arrives, whatever the sharding, the slicing and the storage types."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.checkpoints import CONFIGS, make_tensors, write_checkpoint
from ziggurat import kernels
from ziggurat.engine import weights
from ziggurat.engine.weights import fill_random, read_checkpoint, torch_dtype, weight_views
from ziggurat.errors import ModelError
from ziggurat.memory.arena import Arena
from ziggurat.programs.architectures import build_program
from ziggurat.programs.checkpoint import match_program, read_folder, storage_format
from ziggurat.programs.formats import FP32, Q4_0, Q8_0, FormatSpec, format_by_name
from ziggurat.programs.lower import Formats, lower
from ziggurat.programs.plan import Limits, Plan

OPS = kernels.select("torch")
LIMITS = Limits(max_model_len=64, max_num_seqs=2, max_num_batched_tokens=16)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def make_plan(name: str, fmt: FormatSpec) -> Plan:
    return lower(build_program(CONFIGS[name]), Formats(weight=fmt, kv=FP32), LIMITS)


def load(folder: Path, plan: Plan) -> tuple[Arena, dict[str, torch.Tensor]]:
    arena = Arena(plan.weight_bytes, "weights")
    views = weight_views(plan, arena)
    read_checkpoint(plan, views, match_program(plan.program, read_folder(folder)), OPS)
    return arena, views


def check_values(plan: Plan, views: dict[str, torch.Tensor], tensors: dict[str, torch.Tensor]) -> None:
    for weight in plan.weights.values():
        expected = torch.cat([tensors[source].reshape(tensors[source].shape[0], -1) for source, _ in weight.sources])
        if weight.layout == "vector":
            found = views[weight.name].view(-1, 1)
        else:
            found = torch.empty(weight.out_features, weight.in_features, dtype=torch_dtype(weight.format))
            OPS.unpack_rows(views[weight.name], found)
        assert torch.equal(found, expected.to(found.dtype)), weight.name


@pytest.mark.parametrize("name", sorted(CONFIGS))
@pytest.mark.parametrize("stored", sorted(DTYPES))
def test_every_value_arrives_in_its_storage_type(tmp_path: Path, name: str, stored: str) -> None:
    write_checkpoint(tmp_path, name, dtype=DTYPES[stored], num_shards=3 if stored == "bf16" else 1)
    fmt = storage_format(read_folder(tmp_path))
    assert fmt.name == stored
    plan = make_plan(name, fmt)
    arena, views = load(tmp_path, plan)
    check_values(plan, views, make_tensors(CONFIGS[name], dtype=DTYPES[stored]))
    arena.close()


def test_slices_of_a_large_tensor_fit_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "STAGING_BYTES", 6200)
    write_checkpoint(tmp_path, "qwen2")
    plan = make_plan("qwen2", FP32)
    seen: list[tuple[int, int]] = []
    views = weight_views(plan, Arena(plan.weight_bytes, "weights"))
    entries = match_program(plan.program, read_folder(tmp_path))
    read_checkpoint(plan, views, entries, OPS, progress=lambda _, done, total: seen.append((done, total)))
    check_values(plan, views, make_tensors(CONFIGS["qwen2"]))
    assert seen[-1][0] == seen[-1][1] and [done for done, _ in seen] == sorted({done for done, _ in seen})


@pytest.mark.parametrize(("stored", "wanted"), [("fp32", "bf16"), ("bf16", "fp16"), ("fp16", "fp32")])
def test_types_are_converted_when_asked(tmp_path: Path, stored: str, wanted: str) -> None:
    write_checkpoint(tmp_path, "llama", dtype=DTYPES[stored])
    plan = make_plan("llama", format_by_name(wanted))
    _, views = load(tmp_path, plan)
    check_values(plan, views, make_tensors(CONFIGS["llama"], dtype=DTYPES[stored]))


@pytest.mark.parametrize("spec", [Q8_0, Q4_0], ids=lambda spec: spec.name)
@pytest.mark.parametrize("stored", sorted(DTYPES))
def test_weights_are_quantized_as_ggml_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: FormatSpec, stored: str
) -> None:
    """Slice by slice, fused matrices too; norms and biases stay fp32."""
    monkeypatch.setattr(weights, "STAGING_BYTES", 6200)
    write_checkpoint(tmp_path, "qwen2", dtype=DTYPES[stored])
    plan = make_plan("qwen2", spec)
    _, views = load(tmp_path, plan)
    tensors = make_tensors(CONFIGS["qwen2"], dtype=DTYPES[stored])
    for weight in plan.weights.values():
        expected = torch.cat([tensors[source].float() for source, _ in weight.sources])
        if weight.layout == "vector":
            assert torch.equal(views[weight.name], expected)
            continue
        blocks = gguf.quants.quantize(expected.numpy(), gguf.GGMLQuantizationType[spec.name.upper()])
        found = torch.empty(blocks.shape, dtype=torch.uint8)
        OPS.unpack_rows(views[weight.name], found)
        assert np.array_equal(found.numpy(), blocks), weight.name


@pytest.mark.parametrize("spec", [Q8_0, Q4_0], ids=lambda spec: spec.name)
@pytest.mark.parametrize("value", [torch.nan, -torch.inf, 1e9])
def test_values_that_cannot_be_quantized_are_refused(tmp_path: Path, spec: FormatSpec, value: float) -> None:
    tensors = make_tensors(CONFIGS["llama"])
    tensors["lm_head.weight"][5, 7] = value
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=rf"'lm_head.weight' has values .* which {spec.name} cannot hold"):
        load(tmp_path, make_plan("llama", spec))


def test_healthy_weights_are_quantized_without_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_checkpoint(tmp_path, "llama", dtype=torch.bfloat16)
    with caplog.at_level(logging.WARNING):
        load(tmp_path, make_plan("llama", Q8_0))
    assert not caplog.records


def test_values_that_fp16_cannot_hold_are_refused(tmp_path: Path) -> None:
    tensors = make_tensors(CONFIGS["llama"])
    tensors["lm_head.weight"][5, 7] = -1e6
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"'lm_head.weight' has values up to 1e\+06, float16 ends at 65504"):
        load(tmp_path, make_plan("llama", format_by_name("fp16")))


def test_broken_values_are_reported_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tensors = make_tensors(CONFIGS["llama"])
    tensors["model.norm.weight"][3] = torch.nan
    tensors["lm_head.weight"][3, 3] = torch.inf
    save_file(tensors, tmp_path / "model.safetensors")
    with caplog.at_level(logging.WARNING):
        load(tmp_path, make_plan("llama", FP32))
    assert len(caplog.records) == 1 and "2 tensors hold NaN or infinity" in caplog.text


def test_a_file_that_shrinks_after_its_header_was_read(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, "llama")
    plan = make_plan("llama", FP32)
    entries = match_program(plan.program, read_folder(tmp_path))
    os.truncate(tmp_path / "model.safetensors", 100_000)
    with pytest.raises(ModelError, match="is truncated"):
        read_checkpoint(plan, weight_views(plan, Arena(plan.weight_bytes, "weights")), entries, OPS)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="cannot be read"):
        read_checkpoint(plan, weight_views(plan, Arena(plan.weight_bytes, "weights")), entries, OPS)


def test_random_weights_depend_on_seed_and_name_only() -> None:
    def make(name: str, seed: int) -> dict[str, torch.Tensor]:
        plan = make_plan(name, FP32)
        views = weight_views(plan, Arena(plan.weight_bytes, "weights"))
        fill_random(plan, views, OPS, seed=seed)
        return views

    one, again, other = make("llama", 1), make("llama", 1), make("llama", 2)
    assert all(torch.equal(one[name], again[name]) for name in one)
    head = one["lm_head.weight"]
    assert not torch.equal(head, other["lm_head.weight"])
    assert torch.equal(head, make("mistral", 1)["lm_head.weight"])
    assert float(head[:-1].std()) == pytest.approx(64**-0.5, rel=0.02)
    assert torch.equal(one["model.norm.weight"], torch.ones(64))
    biases = next(view for name, view in make("qwen2", 1).items() if name.endswith(".bias"))
    assert 0 < float(biases.std()) < 0.1


def test_interrupting_leaves_nothing_open(tmp_path: Path) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    write_checkpoint(tmp_path, "llama", num_shards=2)
    plan = make_plan("llama", FP32)
    entries = match_program(plan.program, read_folder(tmp_path))
    before = len(os.listdir("/proc/self/fd"))
    with Arena(plan.weight_bytes, "weights") as arena, pytest.raises(KeyboardInterrupt):
        read_checkpoint(plan, weight_views(plan, arena), entries, OPS, progress=interrupt)
    assert len(os.listdir("/proc/self/fd")) == before
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == "float32"
