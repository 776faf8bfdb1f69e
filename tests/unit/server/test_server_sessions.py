# SPDX-License-Identifier: Apache-2.0
"""Sessions over HTTP: fields of requests, files of clients apart, ids that are no paths, a folder that must be there."""

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

KEYS = {"api_key": ("sk-a", "sk-b")}


def talk(*calls: tuple[str, str], config: ServerConfig, keys: tuple[str, ...] = ()) -> list[httpx.Response]:
    """Answers to (method, path), each with its key."""

    async def run() -> list[httpx.Response]:
        async with client_of(create_app(FakeService(), config)) as client:
            heads: Any = [{"Authorization": f"Bearer {key}"} for key in keys] or [{}] * len(calls)
            return [await client.request(*call, headers=head) for call, head in zip(calls, heads, strict=True)]

    return asyncio.run(run())


def test_requests_name_their_session_and_how_long_to_keep_it() -> None:
    service = FakeService()

    async def ask(body: dict[str, Any]) -> httpx.Response:
        async with client_of(create_app(service)) as client:
            return await client.post(CHAT, json={"messages": HELLO, "max_tokens": 2, **body})

    assert asyncio.run(ask({"session_id": "chat-1", "keep_s": 30})).status_code == 200
    assert (service.requests[-1].session_id, service.requests[-1].keep_s) == ("chat-1", 30.0)
    for body, param in (
        ({"session_id": "../x"}, "session_id"),
        ({"session_id": ".hidden"}, "session_id"),
        ({"session_id": "s", "keep_s": 0}, "keep_s"),
        ({"keep_s": 5}, "keep_s"),
    ):
        assert param in error_of(asyncio.run(ask(body)), 400)["message"]


def test_each_client_has_files_of_its_own(tmp_path: Path) -> None:
    config = ServerConfig(session_folder=tmp_path, **KEYS)  # type: ignore[arg-type]
    save, restore = ("POST", "/v1/sessions/s/save"), ("POST", "/v1/sessions/s/restore")
    answers = talk(save, restore, restore, save, restore, config=config, keys=("sk-a", "sk-a", "sk-b", "sk-b", "sk-b"))
    assert [answer.status_code for answer in answers] == [200, 200, 400, 200, 200]
    assert error_of(answers[2], 400)["code"] == "session_not_found"
    assert len(list(tmp_path.rglob("s.zsession"))) == 2
    assert talk(save, config=config, keys=("sk-no",))[0].status_code == 401


@pytest.mark.parametrize("session_id", ["..%2Fx", ".x", "a%20b", "%2e%2e"])
def test_ids_are_no_paths(session_id: str, tmp_path: Path) -> None:
    (answer,) = talk(("POST", f"/v1/sessions/{session_id}/save"), config=ServerConfig(session_folder=tmp_path))
    assert answer.status_code in (400, 404)
    assert not list(tmp_path.iterdir())


def test_without_a_folder_nothing_is_saved() -> None:
    (answer,) = talk(("POST", "/v1/sessions/s/save"), config=ServerConfig())
    assert "--session-folder" in error_of(answer, 501)["message"]
    (gone,) = talk(("DELETE", "/v1/sessions/s"), config=ServerConfig())
    assert error_of(gone, 400)["code"] == "session_not_found"
    (listed,) = talk(("GET", "/v1/sessions"), config=ServerConfig())
    assert listed.json() == {"object": "list", "data": []}
