# SPDX-License-Identifier: Apache-2.0
"""Bodies that nobody would write, made from our own field names: always a 4xx or 501 with OpenAI's body or an answer, never a 500."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fake_service import FakeService
from tests.server_client import CHAT, COMPLETIONS, EMBEDDINGS, HELLO, client_of, error_of
from ziggurat.server.app import create_app
from ziggurat.server.fields import CHAT_UNSUPPORTED
from ziggurat.server.openapi import BODIES

VALID: dict[str, dict[str, Any]] = {
    CHAT: {"messages": HELLO},
    COMPLETIONS: {"prompt": "x"},
    EMBEDDINGS: {"input": "x"},
    "/tokenize": {"prompt": "x"},
    "/detokenize": {"tokens": [65]},
}
NAMES = sorted({field for model in BODIES.values() for field in model.model_fields} | set(CHAT_UNSUPPORTED))
WORDS = (
    "type",
    "function",
    "name",
    "json_schema",
    "schema",
    "text",
    "role",
    "user",
    "content",
    "required",
    "auto",
    "arguments",
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from((*WORDS, *NAMES))
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(WORDS) | st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=8,
)


async def send(path: str, bodies: list[dict[str, Any]]) -> list[httpx.Response]:
    headers = {"content-type": "application/json"}
    async with client_of(create_app(FakeService())) as client:
        return [await client.post(path, content=json.dumps(body), headers=headers) for body in bodies]


@pytest.mark.parametrize("path", sorted(VALID))
@settings(max_examples=60)
@given(data=st.data())
def test_no_body_is_a_500(path: str, data: st.DataObject) -> None:
    changes = st.dictionaries(st.sampled_from(sorted(BODIES[path].model_fields)), VALUES, min_size=1, max_size=3)
    bodies = [{**VALID[path], **data.draw(changes)} for _ in range(4)]
    for response in asyncio.run(send(path, bodies)):
        assert response.status_code in (200, 400, 404, 413, 429, 501), (bodies, response.text)
        if response.status_code != 200:
            error_of(response, response.status_code)


@settings(max_examples=100)
@given(st.dictionaries(st.sampled_from(("messages", "tools", "tool_choice", "response_format")), VALUES, min_size=1))
def test_nested_fields_name_their_path(changes: dict[str, Any]) -> None:
    (response,) = asyncio.run(send(CHAT, [{**VALID[CHAT], **changes}]))
    if response.status_code != 200:
        error = error_of(response, response.status_code)
        assert error["param"] is None or error["param"].split(".")[0] in {
            "messages",
            "tools",
            "tool_choice",
            "response_format",
        }
