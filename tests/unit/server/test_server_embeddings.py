# SPDX-License-Identifier: Apache-2.0
"""POST /v1/embeddings over the fake service: inputs, formats, errors, and what happens when the queue is full."""

from __future__ import annotations

import asyncio
import base64
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types import embedding_create_params

from tests.fake_service import BOS_ID
from tests.server_client import EMBEDDINGS, error_of, post, talk
from ziggurat.server.embeddings import MAX_INPUTS, MAX_OPEN, UNSUPPORTED, EmbeddingRequest, _base64


def test_every_field_of_the_official_client_is_known() -> None:
    assert set(embedding_create_params.EmbeddingCreateParams.__annotations__) <= {
        *EmbeddingRequest.model_fields,
        *UNSUPPORTED,
    }


@pytest.mark.parametrize(
    ("value", "lengths"),
    [
        ("abc", [3]),
        (["abc", "de"], [3, 2]),
        ([7, 8, 9, 10], [4]),
        ([[7], [8, 9]], [1, 2]),
    ],
)
def test_all_shapes_of_input(value: Any, lengths: list[int]) -> None:
    answer = post(EMBEDDINGS, {"input": value, "model": "fake"}).json()
    assert (answer["object"], answer["model"]) == ("list", "fake")
    assert [row["index"] for row in answer["data"]] == list(range(len(lengths)))
    assert {row["object"] for row in answer["data"]} == {"embedding"}
    assert [row["embedding"][0] for row in answer["data"]] == lengths
    assert answer["usage"] == {"prompt_tokens": sum(lengths), "total_tokens": sum(lengths)}


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=20))
def test_base64_is_little_endian_fp32(vector: list[float]) -> None:
    assert list(struct.unpack(f"<{len(vector)}f", base64.b64decode(_base64(vector)))) == vector


def test_base64_and_float_agree() -> None:
    numbers = post(EMBEDDINGS, {"input": "abc"}).json()["data"][0]["embedding"]
    text = post(EMBEDDINGS, {"input": "abc", "encoding_format": "base64"}).json()["data"][0]["embedding"]
    assert list(struct.unpack("<3f", base64.b64decode(text))) == numbers


def test_settings_reach_the_engine() -> None:
    async def work(client: Any, service: Any) -> Any:
        service.has_bos = True
        body = {"input": "x", "pooling": "last", "normalize": False, "priority": 3, "cache_salt": "s"}
        await client.post(EMBEDDINGS, json=body)
        await client.post(EMBEDDINGS, json={"input": "x", "add_special_tokens": False, "request_id": "mine"})
        return service.requests

    first, second = talk(work)
    assert (first.pooling, first.normalize, first.priority, first.cache_salt) == ("last", False, 3, "s")
    assert first.prompt_ids == [BOS_ID, *b"x"] and second.prompt_ids == list(b"x")
    assert (second.pooling, second.normalize, second.request_id) == ("mean", True, "embd-mine/0")


@pytest.mark.parametrize(
    ("changes", "status", "param"),
    [
        ({"dimensions": 64}, 501, "dimensions"),
        ({"input": ""}, 400, "input"),
        ({"input": []}, 400, "input"),
        ({"input": [""]}, 400, "input"),
        ({"input": [[], [1]]}, 400, "input"),
        ({"input": ["a", 1]}, 400, "input"),
        ({"input": [-1]}, 400, "input"),
        ({"input": ["a"] * (MAX_INPUTS + 1)}, 400, "input"),
        ({"input": "x" * 300}, 400, "input"),
        ({"encoding_format": "int8"}, 400, "encoding_format"),
        ({"pooling": "max"}, 400, "pooling"),
        ({"model": "other"}, 404, "model"),
        ({"inputs": "x"}, 400, "inputs"),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, Any], status: int, param: str) -> None:
    assert error_of(post(EMBEDDINGS, {"input": "x", **changes}), status)["param"] == param


def test_a_request_takes_turns_with_others_and_waits_for_its_own_place() -> None:
    async def work(client: Any, service: Any) -> Any:
        response = await client.post(EMBEDDINGS, json={"input": ["ab"] * 30})
        return response, len(service.running), service.aborted

    response, num_left, aborted = talk(work, step_s=0.001, max_running=2, max_waiting=1)
    assert len(response.json()["data"]) == 30
    assert (num_left, aborted) == (0, [])
    assert MAX_OPEN > 3, "more would be open than the queue holds, or this test shows nothing"


def test_a_queue_full_of_others_is_429() -> None:
    async def work(client: Any, service: Any) -> Any:
        body = {"prompt": "x", "max_tokens": 20}
        others = [asyncio.create_task(client.post("/v1/completions", json=body)) for _ in range(2)]
        await asyncio.sleep(0.05)
        response = await client.post(EMBEDDINGS, json={"input": ["a", "b"]})
        await asyncio.gather(*others)
        return response

    response = talk(work, step_s=0.01, max_running=1, max_waiting=1)
    assert error_of(response, 429)["code"] == "queue_full"


def test_a_failed_engine_is_500_and_counted() -> None:
    async def work(client: Any, service: Any) -> Any:
        service.fail_after = 0
        return await client.post(EMBEDDINGS, json={"input": ["a", "b"]}), (await client.get("/metrics")).text

    response, metrics = talk(work)
    assert error_of(response, 500)["code"] == "engine_error"
    assert 'finished_reason="error"' in metrics and 'finished_reason="abort"' in metrics
