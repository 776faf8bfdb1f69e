# SPDX-License-Identifier: Apache-2.0
"""Every failure has a status from one table and one body."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from fastapi import APIRouter

from tests.fake_service import FakeService
from tests.server_client import CHAT, COMPLETIONS, HELLO, client_of, error_of, get, post, talk
from ziggurat import errors
from ziggurat.server.app import create_app
from ziggurat.server.config import ServerConfig
from ziggurat.server.errors import TABLE, answer_for, error_response
from ziggurat.server.state import ServerState

EXAMPLES: list[tuple[errors.ZigguratError, int, str, str]] = [
    (errors.RequestError("no", param="n"), 400, "invalid_request_error", "invalid_value"),
    (
        errors.ContextLengthExceeded(max_model_len=8, num_prompt_tokens=9, num_output_tokens=1, param="prompt"),
        400,
        "invalid_request_error",
        "context_length_exceeded",
    ),
    (
        errors.KVCapacityExceeded("no", needed_bytes=2, available_bytes=1),
        400,
        "invalid_request_error",
        "kv_capacity_exceeded",
    ),
    (errors.UnknownModel("no"), 404, "not_found_error", "model_not_found"),
    (errors.QueueFull("no", retry_after_s=3), 429, "rate_limit_error", "queue_full"),
    (errors.UnsupportedFeature("no", feature="tools"), 501, "not_implemented_error", "tools"),
    (errors.Loading("no"), 503, "unavailable_error", "loading"),
    (errors.Draining("no"), 503, "unavailable_error", "draining"),
    (errors.EngineError("no"), 500, "server_error", "engine_error"),
    (errors.InternalError("no"), 500, "server_error", "internal_error"),
    (errors.ConfigError("no"), 400, "invalid_request_error", "invalid_value"),
]


@pytest.mark.parametrize(("error", "status", "kind", "code"), EXAMPLES, ids=lambda value: type(value).__name__)
def test_the_table(error: errors.ZigguratError, status: int, kind: str, code: str) -> None:
    got_status, raw, headers = error_response(error)
    body = json.loads(raw)["error"]
    assert (got_status, body["type"], body["code"], body["param"]) == (
        status,
        kind,
        code,
        getattr(error, "param", None),
    )
    assert body["message"] == str(error)
    assert ("retry-after" in headers) == (code in ("queue_full", "loading"))


def test_every_class_of_the_tree_has_a_row() -> None:
    def walk(cls: type[errors.ZigguratError]) -> list[type[errors.ZigguratError]]:
        return [cls, *(child for sub in cls.__subclasses__() for child in walk(sub))]

    for cls in walk(errors.ZigguratError):
        status = next(TABLE[base].status for base in cls.__mro__ if base in TABLE)
        assert (status >= 500) == (not issubclass(cls, errors.UserError) or issubclass(cls, errors.UnsupportedFeature))


def test_the_text_of_a_strange_error_stays_inside(caplog: pytest.LogCaptureFixture) -> None:
    assert answer_for(KeyError("x")).status == 500
    assert b"secret" not in error_response(KeyError("secret"))[1]
    assert "secret" in caplog.text


def test_routes_and_methods() -> None:
    missing = error_of(get("/v1/chat/completion", "POST"), 404)
    assert (missing["code"], missing["type"]) == ("route_not_found", "not_found_error")
    assert "/v1/chat/completions" in missing["message"]
    response = get(CHAT)
    assert error_of(response, 405)["code"] == "method_not_allowed"
    assert response.headers["allow"] == "POST"
    error_of(get("/v1/models/nope"), 404)
    error_of(get("/v1/chat/completions/", "POST"), 404)


@pytest.mark.parametrize(
    "raw",
    [b"", b"{", b"{'a': 1}", b"[1]", b"7", b"\xff\xfe", b'{"prompt": NaN}', b"[" * 100_000, b'{"prompt": "\\ud800"}'],
)
def test_broken_json(raw: bytes) -> None:
    async def work(client: httpx.AsyncClient, _: FakeService) -> httpx.Response:
        return await client.post(COMPLETIONS, content=raw, headers={"content-type": "application/json"})

    error = error_of(talk(work), 400)
    assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_json")


@pytest.mark.parametrize("content_type", ["text/plain", "multipart/form-data", None])
def test_wrong_content_type(content_type: str | None) -> None:
    async def work(client: httpx.AsyncClient, _: FakeService) -> httpx.Response:
        headers = {"content-type": content_type} if content_type else {}
        return await client.post(COMPLETIONS, content=b'{"prompt":"x"}', headers=headers)

    assert error_of(talk(work), 400)["code"] == "invalid_content_type"


def test_content_type_with_charset_passes() -> None:
    async def work(client: httpx.AsyncClient, _: FakeService) -> httpx.Response:
        headers = {"content-type": "Application/JSON; charset=utf-8"}
        return await client.post(COMPLETIONS, content=b'{"prompt":"x"}', headers=headers)

    assert talk(work).status_code == 200


def test_compressed_bodies_are_refused() -> None:
    async def work(client: httpx.AsyncClient, _: FakeService) -> httpx.Response:
        headers = {"content-type": "application/json", "content-encoding": "gzip"}
        return await client.post(COMPLETIONS, content=b"{}", headers=headers)

    assert "gzip" in error_of(talk(work), 400)["message"]


def test_probes_may_use_head() -> None:
    assert get("/health", "HEAD").status_code == 200
    assert get("/ready", "HEAD").status_code == 200


def test_body_at_the_cap_and_one_over() -> None:
    config = ServerConfig(max_body_size=2048)
    frame = len(b'{"prompt":""}')

    async def send(client: httpx.AsyncClient, num_bytes: int) -> httpx.Response:
        raw = b'{"prompt":"' + b"a" * (num_bytes - frame) + b'"}'
        return await client.post(COMPLETIONS, content=raw, headers={"content-type": "application/json"})

    fits = talk(lambda client, _: send(client, 2048), config, max_model_len=4096)
    assert fits.status_code == 200, fits.text
    error = error_of(talk(lambda client, _: send(client, 2049), config, max_model_len=4096), 413)
    assert error["code"] == "body_too_large"


@pytest.mark.parametrize(
    "raw",
    [
        b'{"prompt":[' + b"5," * 263_000 + b"5]}",
        b'{"prompt":[' + b"[5]," * 132_000 + b"[5]]}",
        b'{"prompt":"x",' + b",".join(b'"k%d":1' % number for number in range(263_000)) + b"}",
    ],
    ids=["ids", "lists", "keys"],
)
def test_a_body_of_too_many_values_is_refused_before_it_is_parsed(raw: bytes) -> None:
    async def work(client: httpx.AsyncClient, _: FakeService) -> httpx.Response:
        return await client.post(COMPLETIONS, content=raw, headers={"content-type": "application/json"})

    assert "at most 262144" in error_of(talk(work), 413)["message"]


def test_bodies_of_all_clients_together_are_bounded() -> None:
    config = ServerConfig(max_body_size=2048, body_timeout=5)
    gate = asyncio.Event()

    async def waiting(num_bytes: int) -> Any:
        yield b" " * num_bytes
        await gate.wait()
        yield b'{"prompt":"x","max_tokens":1}'

    async def work(client: httpx.AsyncClient, _: FakeService) -> list[httpx.Response]:
        headers = {"content-type": "application/json"}
        held = [asyncio.create_task(client.post(COMPLETIONS, content=waiting(1900), headers=headers)) for _ in range(2)]
        await asyncio.sleep(0.05)
        refused = await client.post(COMPLETIONS, content=b" " * 1000, headers=headers)
        gate.set()
        served = await asyncio.gather(*held)
        again = await client.post(COMPLETIONS, content=b'{"prompt":"x"}', headers=headers)
        return [refused, *served, again]

    refused, *served = talk(work, config)
    assert error_of(refused, 429)["code"] == "queue_full"
    assert refused.headers["retry-after"] == "1"
    assert [answer.status_code for answer in served] == [200, 200, 200]


def test_long_names_are_not_repeated_in_full() -> None:
    name = "x" * 100_000
    for body in ({"prompt": "x", name: 1}, {"prompt": "x", "model": name}, {"prompt": "x", "logit_bias": {name: 1}}):
        response = post(COMPLETIONS, body)
        assert response.status_code in (400, 404)
        assert len(response.content) < 1000


def test_a_slow_body_is_given_up() -> None:
    async def slow() -> Any:
        yield b"{"
        await asyncio.sleep(1)
        yield b"}"

    async def work(client: httpx.AsyncClient, _: FakeService) -> httpx.Response:
        return await client.post(COMPLETIONS, content=slow(), headers={"content-type": "application/json"})

    assert error_of(talk(work, ServerConfig(body_timeout=0.05)), 408)["code"] == "body_timeout"


def test_unknown_model_lists_the_served_names() -> None:
    error = error_of(post(CHAT, {"messages": HELLO, "model": "gpt-17"}), 404)
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert "fake-1, fake" in error["message"]


@pytest.mark.parametrize(("path", "param"), [(CHAT, "messages"), (COMPLETIONS, "prompt")])
def test_one_token_over_the_limit(path: str, param: str) -> None:
    body: dict[str, Any] = {"messages": HELLO} if path == CHAT else {"prompt": "x" * 10}
    num_prompt = post(path, body).json()["usage"]["prompt_tokens"]
    assert post(path, {**body, "max_tokens": 256 - num_prompt}).status_code == 200
    error = error_of(post(path, {**body, "max_tokens": 257 - num_prompt}), 400)
    assert (error["code"], error["param"]) == ("context_length_exceeded", param)
    assert "maximum context length is 256 tokens" in error["message"]
    numbers = (error["max_model_len"], error["num_prompt_tokens"], error["num_output_tokens"])
    assert numbers == (256, num_prompt, 257 - num_prompt)


def test_a_request_that_can_never_fit_names_the_bytes() -> None:
    error = error_of(post(COMPLETIONS, {"prompt": "x" * 100}, kv_tokens=64), 400)
    assert error["code"] == "kv_capacity_exceeded"
    assert (error["needed_bytes"], error["available_bytes"]) == (116 * 1024, 64 * 1024)


def test_a_full_queue_is_429_with_retry_after() -> None:
    async def work(client: httpx.AsyncClient, _: FakeService) -> list[httpx.Response]:
        body = {"prompt": "x", "max_tokens": 5}
        return await asyncio.gather(*(client.post(COMPLETIONS, json=body) for _ in range(5)))

    answers = talk(work, step_s=0.02, max_running=1, max_waiting=2)
    refused = [answer for answer in answers if answer.status_code == 429]
    assert sorted(answer.status_code for answer in answers) == [200, 200, 200, 429, 429]
    assert refused[0].headers["retry-after"] == "3"
    assert error_of(refused[0], 429)["code"] == "queue_full"


def test_prompts_of_one_request_are_admitted_together_or_not_at_all() -> None:
    async def work(client: httpx.AsyncClient, service: FakeService) -> Any:
        held = asyncio.create_task(client.post(COMPLETIONS, json={"prompt": "x", "max_tokens": 10}))
        await asyncio.sleep(0.05)
        answer = await client.post(COMPLETIONS, json={"prompt": ["a"] * 2 + ["x" * 300]})
        await held
        return answer, service

    answer, service = talk(work, step_s=0.02)
    error_of(answer, 400)
    assert service.running == {}


@pytest.mark.parametrize("stream", [False, True])
def test_phases(stream: bool) -> None:
    async def run() -> list[tuple[int, str]]:
        state = ServerState()
        seen = []
        async with client_of(create_app(state)) as client:
            for change in (lambda: None, state.set_draining, lambda: state.set_failed("it broke")):
                change()
                for path in ("/ready", "/v1/models", "/memory" if state.phase == "loading" else "/ready"):
                    answer = await client.get(path)
                    seen.append((answer.status_code, answer.json()["error"]["code"]))
                answer = await client.post(CHAT, json={"messages": HELLO, "stream": stream})
                seen.append((answer.status_code, answer.json()["error"]["code"]))
                assert (await client.get("/health")).status_code == 200
                assert (await client.get("/version")).status_code == 200
        return seen

    assert asyncio.run(run()) == [(503, "loading")] * 4 + [(503, "draining")] * 4 + [(500, "engine_error")] * 4


def test_errors_in_further_routers_get_the_same_body() -> None:
    router = APIRouter()

    @router.get("/extra/{number}")
    async def extra(number: int) -> None:
        if number == 1:
            raise errors.DoesNotFit("too big", needed_bytes=2, available_bytes=1)
        raise ZeroDivisionError

    async def run() -> list[httpx.Response]:
        async with client_of(create_app(FakeService(), routers=[router])) as client:
            return [await client.get(f"/extra/{number}") for number in ("1", "2", "x")]

    fits_not, broken, not_a_number = asyncio.run(run())
    assert error_of(fits_not, 400)["needed_bytes"] == 2
    assert error_of(broken, 500)["code"] == "internal_error"
    assert error_of(not_a_number, 400)["param"] == "number"
    assert broken.headers["x-request-id"]


def test_request_ids_are_echoed_or_made() -> None:
    async def work(client: httpx.AsyncClient, _: FakeService) -> list[str]:
        sent = ["mine-1", "bad id", "", None]
        answers = [
            await client.get("/health", headers={"x-request-id": one} if one is not None else {}) for one in sent
        ]
        return [answer.headers["x-request-id"] for answer in answers]

    echoed, *made = talk(work)
    assert echoed == "mine-1"
    assert all(len(one) == 32 for one in made)
