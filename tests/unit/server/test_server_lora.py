# SPDX-License-Identifier: Apache-2.0
"""Adapters over HTTP: loaded and unloaded with vLLM's bodies, chosen by the model's name, listed with their parent, admin's business."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fake_service import FakeService
from tests.server_client import CHAT, HELLO, client_of, error_of
from ziggurat.server.app import create_app
from ziggurat.server.config import ServerConfig

LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"


def talk(
    *calls: tuple[str, str, Any], config: ServerConfig | None = None, key: str = ""
) -> tuple[list[httpx.Response], FakeService]:
    """Answers to (method, path, body) in order, and the service behind them."""
    service = FakeService()
    service.model_names = ("base",)

    async def run() -> list[httpx.Response]:
        async with client_of(create_app(service, config or ServerConfig())) as client:
            headers = {"Authorization": f"Bearer {key}"} if key else {}
            return [await client.request(method, path, json=body, headers=headers) for method, path, body in calls]

    return asyncio.run(run()), service


def test_load_use_list_and_unload(tmp_path: Path) -> None:
    load = ("POST", LOAD, {"lora_name": "mine", "lora_path": str(tmp_path)})
    chat = ("POST", CHAT, {"messages": HELLO, "model": "mine", "max_tokens": 2})
    plain = ("POST", "/v1/completions", {"prompt": "a", "max_tokens": 2})
    vector = ("POST", "/v1/embeddings", {"input": "a", "model": "mine"})
    unload = ("POST", UNLOAD, {"lora_name": "mine"})
    answers, service = talk(chat, load, chat, plain, vector, ("GET", "/v1/models", None), unload, chat)
    assert [answer.status_code for answer in answers] == [404, 200, 200, 200, 200, 200, 200, 404]
    assert answers[2].json()["model"] == "mine" and answers[3].json()["model"] == "base"
    assert [request.adapter for request in service.requests] == ["mine", "", "mine"]
    cards = {card["id"]: card.get("parent") for card in answers[5].json()["data"]}
    assert cards == {"base": None, "mine": "base"}


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        (LOAD, {"lora_name": "x", "lora_path": "/nowhere"}, "/nowhere has no adapter_config.json"),
        (LOAD, {"lora_name": "x"}, "lora_path"),
        (LOAD, {"lora_name": "", "lora_path": "/tmp"}, "lora_name"),
        (UNLOAD, {"lora_name": "x"}, "no adapter 'x' is loaded"),
        (UNLOAD, {"lora_nam": "x"}, "lora_nam"),
    ],
)
def test_what_is_refused_and_why(path: str, body: dict[str, Any], words: str) -> None:
    (answer,), _ = talk(("POST", path, body))
    assert words in error_of(answer, 400)["message"]


def test_loading_needs_the_admin_key(tmp_path: Path) -> None:
    config = ServerConfig(api_key=("sk-one",), admin_api_key=("sk-admin",))
    load = ("POST", LOAD, {"lora_name": "mine", "lora_path": str(tmp_path)})
    statuses = [talk(load, config=config, key=key)[0][0].status_code for key in ("", "sk-one", "sk-admin")]
    assert statuses == [401, 401, 200]
