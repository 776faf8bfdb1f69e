# SPDX-License-Identifier: Apache-2.0
"""Logits against Hugging Face transformers: every architecture, prefill, chunked prefill and decode."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from tests.checkpoints import CONFIGS, VOCAB_SIZE, write_checkpoint
from tests.unit.engine.rig import Rig
from ziggurat.kernels.ops import load_native

MAX_RELATIVE_ERROR = 1e-4
BACKENDS = ["torch", *(["native"] if load_native() is not None else [])]
TOKENS = torch.randint(2, VOCAB_SIZE, (70,), generator=torch.Generator().manual_seed(3)).tolist()
PREFIXES = (40, 41, 55, 70)


# Every architecture in fp32; 16-bit weights are multiplied with fp32 activations, so they are held to the same bound.
CASES = [*((name, torch.float32) for name in sorted(CONFIGS)), ("llama", torch.bfloat16), ("qwen2", torch.float16)]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]}-{str(case[1])[6:]}")
def case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[int, torch.Tensor]]:
    """A checkpoint, and transformers' logits after prefixes of TOKENS (all longer than the sliding windows)."""
    name, dtype = request.param
    folder = write_checkpoint(tmp_path_factory.mktemp(name), name, dtype=dtype, with_tokenizer=False)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    assert type(model).__name__ == CONFIGS[name]["architectures"][0]
    with torch.inference_mode():
        logits = model.eval()(torch.tensor([TOKENS])).logits[0]
    return folder, {length: logits[length - 1] for length in PREFIXES}


def check(found: torch.Tensor, expected: torch.Tensor) -> None:
    error = float((found - expected).abs().max() / expected.abs().max())
    assert error <= MAX_RELATIVE_ERROR


@pytest.mark.parametrize("backend", BACKENDS)
def test_logits(case: tuple[Path, dict[int, torch.Tensor]], backend: str) -> None:
    folder, expected = case
    rig = Rig(folder, backend=backend)
    check(rig.logits(rig.item("whole", TOKENS, 0))[0], expected[70])
    # Chunks of different sizes, with another sequence in the same step.
    assert rig.logits(rig.item("chunked", TOKENS[:13], 0, params=None)).shape[0] == 0
    rig.logits(rig.item("chunked", TOKENS[13:30], 13, params=None), rig.item("other", TOKENS[:40], 0))
    check(rig.logits(rig.item("chunked", TOKENS[30:55], 30))[0], expected[55])
    # Prefill, then decode one by one.
    found = rig.logits(rig.item("chunked", TOKENS[55:56], 55, params=None), rig.item("decoding", TOKENS[:40], 0))
    check(found[0], expected[40])
    check(rig.logits(rig.item("decoding", TOKENS[40:41], 40))[0], expected[41])
    for position in range(41, 70):
        found = rig.logits(rig.item("decoding", TOKENS[position : position + 1], position))
    check(found[0], expected[70])
