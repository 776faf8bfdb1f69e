# SPDX-License-Identifier: Apache-2.0
"""Keys: which routes need one, which key opens which route, what a refusal looks like, and that no key is ever shown."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import APIRouter
from starlette.responses import Response

from tests.fake_service import FakeService
from tests.server_client import CHAT, HELLO, client_of, error_of, talk
from ziggurat.errors import ConfigError
from ziggurat.server import auth
from ziggurat.server.app import create_app
from ziggurat.server.auth import Keys, is_known, load_keys
from ziggurat.server.config import ServerConfig

ONE, TWO, ADMIN = "sk-one", "sk-two", "sk-admin"
BOTH = ServerConfig(api_key=(ONE, TWO), admin_api_key=(ADMIN,))
OPEN = ("/health", "/ready", "/version", "/metrics", "/memory", "/", "/openapi.json")


def call(method: str, path: str, config: ServerConfig, key: str | None = None, **more: Any) -> httpx.Response:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    return talk(lambda client, _: client.request(method, path, headers=headers, **more), config)


@pytest.mark.parametrize("path", OPEN)
def test_probes_metrics_and_the_page_stay_open(path: str) -> None:
    assert call("GET", path, BOTH).status_code == 200


@pytest.mark.parametrize(
    "path", ["/v1/models", "/v1/models/fake", "/v1/no/such/route", "/v1", "/tokenize", "/detokenize"]
)
def test_the_api_needs_a_key(path: str) -> None:
    answer = call("GET", path, BOTH)
    error = error_of(answer, 401)
    assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", "invalid_api_key", None)
    assert answer.headers["www-authenticate"] == "Bearer"
    assert len(answer.headers["x-request-id"]) == 32


@pytest.mark.parametrize("key", [ONE, TWO, ADMIN])
def test_every_key_opens_the_api(key: str) -> None:
    answer = call("POST", CHAT, BOTH, key, json={"messages": HELLO, "max_tokens": 2})
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("key", ["", "sk-on", "sk-onee", "SK-ONE", "sk-one sk-two", "é"])
def test_a_wrong_key_is_refused_and_not_repeated(key: str) -> None:
    headers = {"Authorization": f"Bearer {key}".encode()}
    answer = talk(lambda client, _: client.post(CHAT, json={"messages": HELLO}, headers=headers), BOTH)
    message = error_of(answer, 401)["message"]
    assert "key that was sent" in message
    assert len(key) < 5 or key not in message


@pytest.mark.parametrize("value", ["sk-one", "Basic sk-one", "Token sk-one"])
def test_another_scheme_is_named(value: str) -> None:
    answer = talk(lambda client, _: client.get("/v1/models", headers={"Authorization": value}), BOTH)
    assert "Bearer KEY" in error_of(answer, 401)["message"]


@pytest.mark.parametrize("path", ["/v1/completions", CHAT, "/v1/embeddings"])
def test_a_client_is_the_holder_of_the_key_whatever_it_says(path: str) -> None:
    """Fairness is between clients: who could choose a name per request could take every turn."""
    service = FakeService()
    asked = {"messages": HELLO} if path == CHAT else {"input": "a"} if path == "/v1/embeddings" else {"prompt": "a"}

    async def ask(config: ServerConfig, user: str | None) -> str:
        async with client_of(create_app(service, config)) as client:
            headers = {"Authorization": f"Bearer {ONE}"}
            answer = await client.post(path, json={**asked, "user": user}, headers=headers)
            assert answer.status_code == 200, answer.text
        return service.requests[-1].client

    holder = f"key-{hashlib.sha256(ONE.encode()).hexdigest()[:8]}"
    assert [asyncio.run(ask(BOTH, user)) for user in ("alice", None)] == [holder, holder]
    assert [asyncio.run(ask(ServerConfig(), user)) for user in ("alice", None)] == ["alice", ""]


def test_without_keys_all_is_open() -> None:
    assert call("GET", "/v1/models", ServerConfig()).status_code == 200
    assert call("GET", "/v1/models", ServerConfig(admin_api_key=(ADMIN,))).status_code == 200


def resetting(config: ServerConfig, method: str, key: str | None) -> int:
    """Status of a route that changes state, in an app that has one."""
    router = APIRouter()

    @router.api_route("/reset_prefix_cache", methods=["GET", "POST"])
    async def reset() -> Response:
        return Response()

    async def run() -> int:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        async with client_of(create_app(FakeService(), config, routers=[router])) as client:
            return (await client.request(method, "/reset_prefix_cache", headers=headers)).status_code

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("config", "key", "status"),
    [
        (BOTH, None, 401),
        (BOTH, ONE, 401),
        (BOTH, ADMIN, 200),
        (ServerConfig(api_key=(ONE,)), None, 401),
        (ServerConfig(api_key=(ONE,)), ONE, 200),
        (ServerConfig(admin_api_key=(ADMIN,)), None, 401),
        (ServerConfig(), None, 200),
    ],
)
def test_state_is_changed_with_the_admin_key(config: ServerConfig, key: str | None, status: int) -> None:
    assert resetting(config, "POST", key) == status


def test_only_changing_needs_it() -> None:
    assert resetting(BOTH, "GET", None) == 200


def test_a_prefix_is_a_whole_part_of_the_path() -> None:
    keys = Keys(api=(b"x",))
    assert keys.allowed("GET", "/v1x") is None
    assert keys.allowed("GET", "/v1/x") == (b"x",)


def test_keys_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# for the team\n{ONE}\n\n  {TWO}  \n", encoding="utf-8")
    assert load_keys(ServerConfig(api_key_file=path)) == load_keys(ServerConfig(api_key=(ONE, TWO)))
    assert call("GET", "/v1/models", ServerConfig(api_key_file=path), TWO).status_code == 200


def test_files_that_are_no_use(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read --api-key-file .*none: No such file"):
        load_keys(ServerConfig(api_key_file=tmp_path / "none"))
    (tmp_path / "empty").write_text("# nothing\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="has no key; write one per line"):
        load_keys(ServerConfig(api_key_file=tmp_path / "empty"))
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8 text"):
        load_keys(ServerConfig(api_key_file=tmp_path / "binary"))


@pytest.mark.parametrize("key", ["", "with space", "ключ-to-the-door"])
def test_malformed_keys_are_refused_without_showing_them(key: str) -> None:
    for config in (ServerConfig(api_key=(key,)), ServerConfig(admin_api_key=(key,))):
        with pytest.raises(ConfigError, match=f"key 1 of --.*it has {len(key)} characters") as caught:
            load_keys(config)
        assert not key or key not in str(caught.value)


def test_no_key_is_shown() -> None:
    assert "sk-" not in repr(BOTH)
    assert "sk-" not in repr(load_keys(BOTH))


def test_every_digest_is_compared_whatever_matches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopping at the first match would tell by time which key it was."""
    calls: list[bytes] = []
    real = auth.hmac.compare_digest

    def counting(one: bytes, other: bytes) -> bool:
        calls.append(other)
        return real(one, other)

    monkeypatch.setattr(auth.hmac, "compare_digest", counting)
    digests = load_keys(BOTH).api
    assert is_known(ONE.encode(), digests)
    assert not is_known(b"no", digests)
    assert calls == [*digests, *digests]
