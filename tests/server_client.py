# SPDX-License-Identifier: Apache-2.0
"""Talking to an app in the same process: one call, one answer, and server-sent events taken apart."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
from fastapi import FastAPI

from tests.fake_service import FakeService
from ziggurat.server.app import create_app
from ziggurat.server.config import ServerConfig

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
EMBEDDINGS = "/v1/embeddings"
HELLO = [{"role": "user", "content": "hello"}]


def talk(
    work: Callable[[httpx.AsyncClient, FakeService], Awaitable[Any]],
    config: ServerConfig | None = None,
    **settings: Any,
) -> Any:
    """Run ``work`` against a fresh app with a fake service made with ``settings``."""

    async def run() -> Any:
        service = FakeService(**settings)
        async with client_of(create_app(service, config)) as client:
            return await work(client, service)

    return asyncio.run(run())


def client_of(app: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test")


def post(path: str, body: Any, config: ServerConfig | None = None, **settings: Any) -> httpx.Response:
    """One POST to a fresh app."""
    return talk(lambda client, _: client.post(path, json=body), config, **settings)


def get(path: str, method: str = "GET", **settings: Any) -> httpx.Response:
    """One request without a body to a fresh app."""
    return talk(lambda client, _: client.request(method, path), **settings)


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    """The error object, after checking that the body is exactly OpenAI's shape."""
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == {"error"}
    error = body["error"]
    assert {"message", "type", "param", "code"} <= set(error)
    assert isinstance(error["message"], str)
    assert error["message"]
    return error


def events(text: str) -> list[Any]:
    """The payloads of ``data:`` lines; ``[DONE]`` stays text."""
    payloads = []
    for block in text.split("\n\n")[:-1]:
        assert block.startswith("data: "), block
        payload = block.removeprefix("data: ")
        payloads.append(payload if payload == "[DONE]" else json.loads(payload))
    return payloads
