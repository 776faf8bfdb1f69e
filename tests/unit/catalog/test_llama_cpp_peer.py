# SPDX-License-Identifier: Apache-2.0
"""llama.cpp as a peer: the same greedy tokens as ours, alone, in a batch and behind a shared prefix."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.checkpoints import CONFIGS, write_checkpoint
from ziggurat.catalog.peers.llama_cpp_peer import LlamaCppF16
from ziggurat.catalog.peers.registry import Job
from ziggurat.catalog.peers.ziggurat_peer import ZigguratFp32
from ziggurat.errors import EngineError

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (make env-bench)")

from ziggurat.catalog.peers.llama_files import gguf_file
from ziggurat.catalog.peers.llama_session import LlamaSession, greedy

RNG = random.Random(5)
PREFIX = [RNG.randrange(2, 300) for _ in range(90)]
APART = [[RNG.randrange(2, 300) for _ in range(9)] for _ in range(4)]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """Random weights whose logits differ clearly, so that roundings of f16 change no token."""
    config = {**CONFIGS["llama"], "hidden_size": 128, "num_attention_heads": 4, "intermediate_size": 256}
    folder = write_checkpoint(tmp_path_factory.mktemp("job"), config, with_tokenizer=False)
    return Job(folder=folder, threads=1, max_num_seqs=4, max_model_len=128, max_kv_tokens=512)


@pytest.mark.parametrize("prompts", [APART, APART[:1], [PREFIX + suffix for suffix in APART]])
def test_the_tokens_are_ours(job: Job, prompts: list[list[int]]) -> None:
    outputs = []
    for peer in (ZigguratFp32(), LlamaCppF16()):
        peer.open(job)
        outputs.append(peer.generate(prompts, 6))
    assert outputs[0] == outputs[1]


def test_a_shared_prefix_is_computed_once(job: Job) -> None:
    """Four prompts of 99 tokens do not fit 256 tokens of KV one by one; with their 90 tokens shared they do."""
    path = gguf_file(job.folder, "f16", 1)
    prompts = [PREFIX + suffix for suffix in APART]
    with LlamaSession(path, threads=1, num_tokens=256, num_sequences=4) as session:
        assert session.num_tokens == 256
        assert [len(output) for output in greedy(session, prompts, 7)] == [7] * 4


def test_all_formats_are_made_and_kept(job: Job) -> None:
    sizes = {}
    for name in ("f16", "q8_0", "q4_0"):
        path = gguf_file(job.folder, name, 1)
        assert gguf_file(job.folder, name, 1) == path and path.parent == job.folder
        with LlamaSession(path, threads=1, num_tokens=256, num_sequences=4, is_repacked=False) as session:
            assert [len(output) for output in greedy(session, APART, 3)] == [3] * 4
        sizes[name] = path.stat().st_size
    assert sizes["q4_0"] < sizes["q8_0"] < sizes["f16"]
    assert not list(job.folder.glob("*.part"))


def test_what_fails_says_why(job: Job, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"(?s)making q8_0.gguf failed with code 1: .*config\.json"):
        gguf_file(tmp_path, "q8_0", 1)
    with (
        LlamaSession(gguf_file(job.folder, "f16", 1), threads=1, num_tokens=256, num_sequences=1) as session,
        pytest.raises(EngineError, match="code 1"),
    ):
        greedy(session, [PREFIX * 4], 1)
    (tmp_path / "bad.gguf").write_bytes(b"GGUF")
    with pytest.raises(EngineError, match="cannot load"):
        LlamaSession(tmp_path / "bad.gguf", threads=1, num_tokens=64, num_sequences=1)
