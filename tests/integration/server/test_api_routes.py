# SPDX-License-Identifier: Apache-2.0
"""Embeddings, tokens and the prefix cache with the real engine and the official client."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest

from tests.checkpoints import write_checkpoint
from tests.server_process import ServerProcess, engine_server
from ziggurat import LLM

SETTINGS = {"memory": "56MiB", "max_model_len": 224, "max_num_seqs": 4, "max_queued_requests": 3, "threads": 1}
TEXTS = ["one text", "another text that is longer", "a third", "one text"] * 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model"), "qwen3")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[ServerProcess]:
    with engine_server(folder, served_model_name="tiny", **SETTINGS) as process:
        yield process


def post(server: ServerProcess, path: str, body: object = None) -> httpx.Response:
    return httpx.post(server.url + path, json=body, timeout=60)


def test_embeddings_are_those_of_the_python_api(folder: Path, server: ServerProcess) -> None:
    """More texts than the queue holds; the client asks for base64 by itself."""
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0, timeout=60)
    found = client.embeddings.create(model="tiny", input=TEXTS)
    with LLM(str(folder), **SETTINGS) as llm:  # type: ignore[arg-type]
        expected = [each.outputs.embedding for each in llm.embed(TEXTS)]
        num_tokens = sum(len(each.prompt_token_ids) for each in llm.embed(TEXTS))
    assert [row.embedding for row in found.data] == expected
    assert found.usage.prompt_tokens == num_tokens
    as_floats = client.embeddings.create(model="tiny", input=TEXTS[:2], encoding_format="float")
    assert np.array_equal(np.float32([row.embedding for row in as_floats.data]), np.float32(expected[:2]))
    with pytest.raises(openai.BadRequestError, match="maximum context length is 224 tokens") as failure:
        client.embeddings.create(model="tiny", input=list(range(10, 250)))
    assert (failure.value.param, failure.value.code) == ("input", "context_length_exceeded")


def test_tokens_go_there_and_back(server: ServerProcess) -> None:
    tokens = post(server, "/tokenize", {"prompt": "naïve 日本"}).json()["tokens"]
    assert post(server, "/detokenize", {"tokens": tokens}).json()["prompt"].endswith("naïve 日本")
    chat = post(server, "/tokenize", {"messages": [{"role": "user", "content": "hi"}]}).json()
    usage = post(server, "/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1})
    assert chat["count"] == usage.json()["usage"]["prompt_tokens"]


def test_reset_prefix_cache(server: ServerProcess) -> None:
    def cached() -> int:
        body = {"prompt": list(range(10, 60)), "max_tokens": 1}
        usage = post(server, "/v1/completions", body).json()["usage"]
        return int(usage["prompt_tokens_details"]["cached_tokens"])

    cached()
    assert cached() == 48
    assert post(server, "/reset_prefix_cache").json()["num_dropped_blocks"] >= 3
    assert cached() == 0
    assert sum(group["cached_blocks"] for group in server.get("/memory").json()["kv"]) == 3
