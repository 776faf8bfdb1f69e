# SPDX-License-Identifier: Apache-2.0
"""The adapter to the engine, under the app: tokenizer or none, statistics, the engine's death, draining."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

from tests.server_client import CHAT, COMPLETIONS, HELLO, client_of, error_of, events
from tests.unit.engine.engine_fakes import FakeEngine
from ziggurat.engine.chat_template import ChatTemplate
from ziggurat.server.app import create_app
from ziggurat.server.engine_service import EngineService

IDS = {"prompt": [5, 6], "max_tokens": 4}


class Engine(FakeEngine):
    """The engine tests' fake with the statistics that the server reads."""

    def stats(self) -> dict[str, float]:
        return {
            "num_requests_running": 3.0,
            "num_requests_waiting": 2.0,
            "num_preemptions_total": 7.0,
            "recomputed_tokens_total": 8.0,
            "swapped_out_tokens_total": 4.0,
            "swapped_in_tokens_total": 3.0,
            "evicted_blocks_total": 9.0,
            "steps_total": 10.0,
            "busy_seconds_total": 1.5,
            "num_clients": 2.0,
            "jain_index": 0.75,
            "kv_used_bytes": 10.0,
            "kv_total_bytes": 40.0,
        }


def with_engine(
    work: Callable[[httpx.AsyncClient, EngineService], Awaitable[Any]], engine: Engine | None = None
) -> Any:
    async def run() -> Any:
        service = EngineService(engine or Engine())
        try:
            async with client_of(create_app(service)) as client:
                return await work(client, service)
        finally:
            await service.close()

    return asyncio.run(run())


def test_a_model_without_tokenizer_serves_token_ids() -> None:
    async def work(client: httpx.AsyncClient, _: EngineService) -> list[httpx.Response]:
        bodies = [(COMPLETIONS, {**IDS, "logprobs": 0}), (COMPLETIONS, {"prompt": "x"}), (CHAT, {"messages": HELLO})]
        return [await client.post(path, json=body) for path, body in bodies]

    ids, text, chat = with_engine(work)
    choice = ids.json()["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("1 2 3 4 ", "length")
    assert choice["logprobs"]["tokens"] == ["<1>", "<2>", "<3>", "<4>"]
    for response in (text, chat):
        assert error_of(response, 400)["code"] == "no_tokenizer"


class Letters:
    """A tokenizer of one token per character."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [1] * add_special_tokens + [ord(letter) % 1000 for letter in text]

    def decode(self, token_ids: list[int]) -> str:
        return "".join(chr(token_id) for token_id in token_ids)

    def token_bytes(self, token_id: int) -> bytes:
        return chr(token_id).encode()


def test_special_tokens_come_from_the_tokenizer_or_from_the_template_but_not_from_both() -> None:
    engine: Any = Engine()
    engine.tokenizer = Letters()

    async def work(client: httpx.AsyncClient, _: EngineService) -> list[httpx.Response]:
        text = await client.post(COMPLETIONS, json={"prompt": "ab", "max_tokens": 1, "echo": True})
        refused = await client.post(CHAT, json={"messages": HELLO, "max_tokens": 1})
        engine.chat_template = ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}", {})
        chat = await client.post(CHAT, json={"messages": HELLO, "max_tokens": 1})
        return [text, refused, chat]

    text, refused, chat = with_engine(work, engine)
    assert text.json()["usage"]["prompt_tokens"] == 3
    assert text.json()["choices"][0]["text"] == "ab1 "
    assert "template" in error_of(refused, 400)["message"]
    assert chat.json()["usage"]["prompt_tokens"] == len("hello")


def test_statistics() -> None:
    stats = with_engine(lambda _, service: service.stats())
    assert (stats.num_running, stats.num_waiting, stats.num_preemptions) == (3, 2, 7)
    assert (stats.num_recomputed_tokens, stats.num_evicted_blocks, stats.num_steps, stats.busy_s) == (8, 9, 10, 1.5)
    assert stats.kv_usage_ratio == pytest.approx(0.25)


def test_a_dead_engine_ends_streams_answers_and_the_service() -> None:
    engine = Engine()
    engine.fails_at = 3

    async def work(client: httpx.AsyncClient, service: EngineService) -> Any:
        assert service.failure() is None
        stream = await client.post(COMPLETIONS, json={**IDS, "max_tokens": 60, "stream": True})
        later = await client.post(COMPLETIONS, json=IDS)
        memory = await client.get("/memory")
        return stream, later, memory, service.failure()

    stream, later, memory, failure = with_engine(work, engine)
    assert "a wire came loose" in events(stream.text)[-1]["error"]["message"]
    assert error_of(later, 500)["code"] == "engine_error"
    assert error_of(memory, 500)["code"] == "engine_error"
    assert "a wire came loose" in failure


def test_after_a_drain_new_requests_are_refused() -> None:
    async def work(client: httpx.AsyncClient, service: EngineService) -> Any:
        running = asyncio.create_task(client.post(COMPLETIONS, json={**IDS, "max_tokens": 40}))
        await asyncio.sleep(0.01)
        was_clean = await service.drain(10)
        return was_clean, await running, await client.post(COMPLETIONS, json=IDS)

    was_clean, finished, refused = with_engine(work)
    assert was_clean
    assert finished.json()["usage"]["completion_tokens"] == 40
    assert error_of(refused, 503)["code"] == "draining"
