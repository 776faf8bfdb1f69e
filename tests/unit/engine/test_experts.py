# SPDX-License-Identifier: Apache-2.0
"""Mixtures of experts as a whole: files as transformers writes them, wrong counts, and a workspace that ragged experts never outgrow."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.checkpoints import CONFIGS, VOCAB_SIZE, write_checkpoint
from tests.unit.engine.rig import Rig
from ziggurat.engine.executor import PlanExecutor
from ziggurat.engine.llm import LLM
from ziggurat.errors import ModelError
from ziggurat.kernels import select
from ziggurat.kernels.ops import load_native
from ziggurat.memory.arena import Arena
from ziggurat.programs.plan import Limits
from ziggurat.scheduling.sampling import SamplingParams
from ziggurat.units import KIB, MIB

BACKENDS = ["torch", *(["native"] if load_native() is not None else [])]
FAMILIES = ["mixtral", "qwen3_moe_norm"]
NUM_TOKENS = 256
LIMITS = Limits(max_model_len=NUM_TOKENS, max_num_seqs=2, max_num_batched_tokens=NUM_TOKENS, block_size=16)
TOKENS = torch.randint(2, VOCAB_SIZE, (NUM_TOKENS,), generator=torch.Generator().manual_seed(1)).tolist()


@pytest.mark.parametrize("name", FAMILIES)
def test_files_as_transformers_writes_them(tmp_path: Path, name: str) -> None:
    raw = {key: value for key, value in CONFIGS[name].items() if key not in ("architectures", "model_type")}
    config = transformers.AutoConfig.for_model(CONFIGS[name]["model_type"], **raw)
    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(tmp_path)
    with torch.inference_mode():
        expected = model(torch.tensor([TOKENS[:40]])).logits[0, -1]
    rig = Rig(tmp_path)
    found = rig.logits(rig.item("a", TOKENS[:40], 0))[0]
    assert float((found - expected).abs().max() / expected.abs().max()) <= 1e-4


@pytest.mark.parametrize(
    ("name", "key", "stored"), [("mixtral", "num_local_experts", 5), ("qwen3_moe", "num_experts", 8)]
)
@pytest.mark.parametrize("difference", [-1, 2])
def test_a_count_that_contradicts_the_tensors_is_one_clear_error(
    tmp_path: Path, name: str, key: str, stored: int, difference: int
) -> None:
    write_checkpoint(tmp_path, name)
    raw = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**raw, key: stored + difference}))
    words = f"config.json says {stored + difference} experts per layer, the checkpoint has {stored}"
    with pytest.raises(ModelError, match=words):
        LLM(str(tmp_path), memory="48MiB")


@pytest.mark.parametrize("name", FAMILIES)
def test_random_weights_generate(tmp_path: Path, name: str) -> None:
    write_checkpoint(tmp_path, name)
    for path in tmp_path.glob("*.safetensors"):
        path.unlink()
    with LLM(str(tmp_path), memory="48MiB", load_format="dummy") as llm:
        (answer,) = llm.generate([[5, 6, 7]], SamplingParams(max_tokens=4, ignore_eos=True, temperature=0))
        assert len(answer.outputs[0].token_ids) == 4


def wide_config() -> dict[str, Any]:
    """Many experts, so that padding them to a common capacity would multiply the workspace."""
    changes = {"num_experts": 32, "num_experts_per_tok": 4, "moe_intermediate_size": 128, "num_hidden_layers": 2}
    return {**CONFIGS["qwen3_moe"], **changes, "max_position_embeddings": NUM_TOKENS}


def make_one_sided(folder: Path) -> None:
    """Routers of zeros make all experts equal, and ties go to the lower number: experts 0 to 3 get every token, the others none."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    save_file({n: torch.zeros_like(t) if n.endswith("mlp.gate.weight") else t for n, t in tensors.items()}, path)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("is_one_sided", [False, True])
def test_nothing_is_written_beyond_the_planned_workspace(tmp_path: Path, backend: str, is_one_sided: bool) -> None:
    write_checkpoint(tmp_path, wide_config(), with_tokenizer=False)
    if is_one_sided:
        make_one_sided(tmp_path)
    rig = Rig(tmp_path, backend=backend, limits=LIMITS)
    planned = rig.plan.workspace_bytes
    # Beside the residual stream, the widest a token gets is its four experts' gates, ups and activations.
    assert planned <= NUM_TOKENS * 4 * (4 * (256 + 128) + 1024) + MIB
    workspace = Arena(planned + MIB, "workspace")
    guard = torch.frombuffer(workspace.buffer, dtype=torch.uint8)[planned : planned + MIB]
    guard.fill_(0xA5)
    memory = dataclasses.replace(rig.memory, workspace=workspace)
    expected = rig.logits(rig.item("a", TOKENS, 0))
    rig.executor = PlanExecutor(rig.plan, memory, select(backend))
    assert torch.equal(rig.logits(rig.item("b", TOKENS, 0)), expected)
    assert bool((guard == 0xA5).all())


def peak_rss_bytes() -> int:
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * KIB for line in status if line.startswith("VmHWM"))


@pytest.mark.skipif(load_native() is None, reason="the twins are allowed temporaries; the native kernels are not built")
def test_one_sided_experts_take_no_memory(tmp_path: Path) -> None:
    """The highest resident size during a step of the worst shape, after a step of ordinary routing has touched the workspace."""
    write_checkpoint(tmp_path / "even", wide_config(), with_tokenizer=False)
    write_checkpoint(tmp_path / "one sided", wide_config(), with_tokenizer=False)
    make_one_sided(tmp_path / "one sided")
    even = Rig(tmp_path / "even", backend="native", limits=LIMITS)
    one_sided = Rig(tmp_path / "one sided", backend="native", limits=LIMITS)
    one_sided.executor = PlanExecutor(
        one_sided.plan, dataclasses.replace(one_sided.memory, workspace=even.memory.workspace), select("native")
    )
    for rig in (even, one_sided):
        rig.logits(rig.item("a", TOKENS[:8], 0))
    even.logits(even.item("b", TOKENS, 0))
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError as error:
        pytest.skip(f"this machine does not reset the peak of a process: {error}")
    before = peak_rss_bytes()
    one_sided.logits(one_sided.item("b", TOKENS, 0))
    # Keys and values of the new sequence are planned bytes of the pool, touched for the first time here.
    pool_bytes = NUM_TOKENS * one_sided.plan.kv_bytes_per_token()
    assert peak_rss_bytes() - before <= pool_bytes + 512 * KIB
