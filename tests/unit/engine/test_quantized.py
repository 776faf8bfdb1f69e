# SPDX-License-Identifier: Apache-2.0
"""Whole models with quantized weights: how far from fp32, both backends, and not a byte beyond what was planned."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tokenizers
import torch

from tests.checkpoints import CONFIGS, write_checkpoint
from tests.unit.engine.rig import LIMITS, Rig
from ziggurat.engine.config import EngineConfig
from ziggurat.engine.engine import Engine
from ziggurat.engine.executor import PlanExecutor
from ziggurat.engine.llm import LLM
from ziggurat.engine.resolve import EMBEDDED_FOLDER
from ziggurat.engine.sizing import open_model, size
from ziggurat.errors import UnsupportedFeature
from ziggurat.kernels import select
from ziggurat.kernels.ops import load_native
from ziggurat.memory.arena import Arena
from ziggurat.programs.formats import FP32, Q4_0, Q8_0, FormatSpec
from ziggurat.programs.plan import Limits
from ziggurat.training.generated import build_sources
from ziggurat.units import MIB

FASTEST = "torch" if load_native() is None else "native"
BACKENDS = sorted({"torch", FASTEST})
NUM_POSITIONS = 512
NUM_ROWS = 64


@pytest.fixture(scope="module")
def token_ids() -> list[int]:
    backend = tokenizers.Tokenizer.from_file(str(EMBEDDED_FOLDER / "tokenizer.json"))
    ids, _ = build_sources(backend, split="held_out")["prose"](np.random.default_rng(0), NUM_POSITIONS)
    return [int(each) for each in ids]


def log_probabilities(token_ids: list[int], weight: FormatSpec, backend: str) -> torch.Tensor:
    """[positions, vocabulary] of the embedded model, in fp64."""
    limits = Limits(max_model_len=512, max_num_seqs=NUM_ROWS, max_num_batched_tokens=512, block_size=16)
    rig = Rig(EMBEDDED_FOLDER, backend=backend, weight=weight, limits=limits)
    rig.logits(rig.item("only", token_ids, 0))
    starts = range(0, len(token_ids), NUM_ROWS)
    parts = [rig.executor.rows(range(start, start + NUM_ROWS), is_hidden=False).copy() for start in starts]
    return torch.from_numpy(np.concatenate(parts)).double().log_softmax(-1)


# Seen on 2,000 positions of held-out prose for q4_0: 90.8 % and 0.040; perplexity 11.90 with q8_0, 11.86 with q4_0.
BOUNDS = {"q8_0": (0.97, 1e-3, 0.01), "q4_0": (0.85, 0.08, 0.05)}


@pytest.mark.parametrize("spec", [Q8_0, Q4_0], ids=lambda spec: spec.name)
def test_the_embedded_model_stays_close_to_fp32(spec: FormatSpec, token_ids: list[int]) -> None:
    exact, found = (log_probabilities(token_ids, weight, FASTEST) for weight in (FP32, spec))
    min_top1, max_kl, max_loss = BOUNDS[spec.name]
    top1 = float((exact.argmax(1) == found.argmax(1)).double().mean())
    kl = float((exact.exp() * (exact - found)).sum(1).mean())
    following = torch.tensor(token_ids[1:])[:, None]
    loss, exact_loss = (-float(each[:-1].gather(1, following).mean()) for each in (found, exact))
    assert top1 >= min_top1 and kl <= max_kl, (top1, kl)
    assert abs(loss - exact_loss) <= max_loss, (loss, exact_loss)


@pytest.mark.skipif(len(BACKENDS) < 2, reason="the native kernels are not built")
@pytest.mark.parametrize("spec", [Q8_0, Q4_0], ids=lambda spec: spec.name)
def test_backends_agree(spec: FormatSpec, token_ids: list[int]) -> None:
    """Not within rounding: where a value lies halfway between two steps, a last bit decides which one it takes."""
    one, other = (log_probabilities(token_ids, spec, backend) for backend in BACKENDS)
    assert float((one.exp() * (one - other)).sum(1).mean()) < 3e-4
    assert float((one.argmax(1) == other.argmax(1)).double().mean()) > 0.98


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "gemma2", "gemma3"])
def test_nothing_is_written_beyond_the_planned_workspace(tmp_path, backend: str, name: str) -> None:
    rig = Rig(write_checkpoint(tmp_path, name, with_tokenizer=False), backend=backend, weight=Q8_0)
    tokens = [7 + (i * i) % 280 for i in range(LIMITS.max_num_batched_tokens)]
    expected = rig.logits(rig.item("a", tokens, 0))
    planned = rig.plan.workspace_bytes
    workspace = Arena(planned + MIB, "workspace")
    guard = torch.frombuffer(workspace.buffer, dtype=torch.uint8)[planned:]
    guard.fill_(0xA5)
    rig.executor = PlanExecutor(rig.plan, dataclasses.replace(rig.memory, workspace=workspace), select(backend))
    assert torch.equal(rig.logits(rig.item("b", tokens, 0)), expected)
    assert bool((guard == 0xA5).all())


@pytest.mark.parametrize("name", ["q8_0", "q4_0"])
def test_the_engine_takes_what_was_planned(name: str) -> None:
    config = EngineConfig(memory="64MiB", quantization=name)
    planned = size(config, open_model(config), 64 * MIB)
    plain = EngineConfig(memory="64MiB")
    bf16_bytes = size(plain, open_model(plain), 64 * MIB).plan.weight_bytes
    bits = {"q8_0": 8.5, "q4_0": 4.5}[name]
    assert planned.plan.weight_bytes == pytest.approx(bf16_bytes * bits / 16, rel=0.02)
    engine = Engine.load(config)
    try:
        assert engine.resources.weights.num_bytes == planned.plan.weight_bytes
        assert engine.resources.workspace.num_bytes == planned.plan.workspace_bytes
        report = engine.memory()
        (row,) = [each for each in report["ledger"] if each["kind"] == "weights"]
        assert row["num_bytes"] == planned.plan.weight_bytes
        assert report["planned_bytes"] + report["reserve_bytes"] == 64 * MIB
    finally:
        engine.close()


def test_experts_are_refused_by_name(tmp_path) -> None:
    folder = write_checkpoint(tmp_path, CONFIGS["mixtral"], with_tokenizer=False)
    with pytest.raises(UnsupportedFeature, match="quantization q8_0: linears of 5 experts .* --quantization none"):
        LLM(str(folder), memory="64MiB", quantization="q8_0")
