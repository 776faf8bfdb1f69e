# SPDX-License-Identifier: Apache-2.0
"""The embedded model on 2,000 positions of held-out text: llama.cpp on our file against our engine, KV in fp32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ziggurat.engine.config import EngineConfig
from ziggurat.engine.gguf.export import export_gguf
from ziggurat.engine.gguf.options import EXPORT_FORMATS
from ziggurat.engine.resolve import EMBEDDED_FOLDER
from ziggurat.engine.sizing import open_model
from ziggurat.engine.tokenizer import Tokenizer
from ziggurat.workload.prose import document

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (make env-bench)")

from tests.unit.engine.gguf.llama_cpp import Logits, distance, llama_logits, our_logits

NUM_POSITIONS = 2000


@pytest.fixture(scope="module")
def token_ids() -> list[int]:
    tokenizer, rng = Tokenizer.load(EMBEDDED_FOLDER), np.random.default_rng(0)
    ids = tokenizer.encode("")
    while len(ids) < NUM_POSITIONS:
        ids += tokenizer.encode(document(rng, "held_out") + "\n", add_special_tokens=False)
    return ids[:NUM_POSITIONS]


@pytest.fixture(scope="module")
def source_logits(token_ids: list[int]) -> Logits:
    return our_logits(EMBEDDED_FOLDER, token_ids)


def test_f16_agrees_with_the_source(token_ids: list[int], source_logits: Logits, tmp_path: Path) -> None:
    path = export_gguf(open_model(EngineConfig()), tmp_path / "model.gguf", EXPORT_FORMATS["f16"]).path
    found = distance(source_logits, llama_logits(path, token_ids))
    assert found.top1 >= 0.995, found
    assert found.mean_kl <= 1e-3, found
