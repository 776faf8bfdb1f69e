# SPDX-License-Identifier: Apache-2.0
"""PUT /memory over the fake service: what is taken, what is refused, and that it needs the admin key."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.server_client import error_of, talk
from ziggurat.server.config import ServerConfig

MIB = 1 << 20


def put(body: Any, config: ServerConfig | None = None, key: str | None = None) -> httpx.Response:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    return talk(lambda client, _: client.put("/memory", json=body, headers=headers), config or ServerConfig())


@pytest.mark.parametrize(("budget", "num_bytes"), [("600MiB", 600 * MIB), (629145600, 629145600), ("2GB", 2 * 10**9)])
def test_a_budget_as_memory_is_written(budget: str | int, num_bytes: int) -> None:
    answer = put({"budget": budget})
    assert answer.status_code == 200, answer.text
    assert answer.json() == {
        "before_bytes": 1 << 30,
        "after_bytes": num_bytes,
        "num_blocks": [7],
        "num_preempted": 1,
        "num_evicted_blocks": 2,
    }


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        ({"budget": "lots"}, None, "'lots' is not a size"),
        ({"budget": -1}, None, "above zero"),
        ({"budget": 1000}, "does_not_fit", "1.00 MiB is the least"),
        ({}, None, "budget"),
        ({"budgett": 1}, None, "budgett"),
    ],
)
def test_what_is_refused_and_why(body: dict[str, Any], code: str | None, words: str) -> None:
    error = error_of(put(body), 400)
    assert words in error["message"] and (code is None or error["code"] == code)


def test_it_needs_the_admin_key_and_reading_does_not() -> None:
    config = ServerConfig(api_key=("sk-one",), admin_api_key=("sk-admin",))
    assert [put({"budget": "1GiB"}, config, key).status_code for key in (None, "sk-one", "sk-admin")] == [401, 401, 200]
    assert talk(lambda client, _: client.get("/memory"), config).status_code == 200
