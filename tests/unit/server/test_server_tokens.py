# SPDX-License-Identifier: Apache-2.0
"""POST /tokenize, /detokenize and /reset_prefix_cache over the fake service."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fake_service import BOS_ID
from tests.server_client import COMPLETIONS, HELLO, error_of, post, talk


def with_bos(path: str, body: Any) -> Any:
    async def work(client: Any, service: Any) -> Any:
        service.has_bos = True
        return (await client.post(path, json=body)).json()

    return talk(work)


def test_tokenize_a_prompt() -> None:
    answer = with_bos("/tokenize", {"prompt": "añ"})
    assert answer == {"count": 4, "max_model_len": 256, "tokens": [BOS_ID, *"añ".encode()], "token_strs": None}
    plain = with_bos("/tokenize", {"prompt": "ab", "add_special_tokens": False, "return_token_strs": True})
    assert (plain["tokens"], plain["token_strs"]) == ([97, 98], ["a", "b"])
    assert with_bos("/tokenize", {"prompt": ""})["tokens"] == [BOS_ID]


def test_tokenize_a_conversation() -> None:
    async def work(client: Any, service: Any) -> Any:
        tool = {"type": "function", "function": {"name": "f", "strict": True}}
        extra = {"chat_template_kwargs": {"a": 1}, "tools": [tool], "add_generation_prompt": False}
        answers = [await client.post("/tokenize", json={"messages": HELLO, **more}) for more in ({}, extra)]
        return [service.decode(answer.json()["tokens"]) for answer in answers], service.template_options[1]

    texts, options = talk(work)
    assert texts == ["<user>hello<assistant>", "<user>hello"]
    assert (options.variables, options.add_generation_prompt) == ({"a": 1}, False)
    assert options.tools == [{"type": "function", "function": {"name": "f"}}]


def test_detokenize_shows_special_tokens_and_undoes_tokenize() -> None:
    text = "naïve 日本"
    tokens = with_bos("/tokenize", {"prompt": text})["tokens"]
    assert with_bos("/detokenize", {"tokens": tokens})["prompt"] == "\x01" + text
    assert with_bos("/detokenize", {"tokens": []})["prompt"] == ""


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "x", "messages": HELLO}, "prompt"),
        ("/tokenize", {"messages": HELLO, "add_special_tokens": True}, "add_special_tokens"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/tokenize", {"messages": HELLO, "chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": "x"}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
        ("/detokenize", {"tokens": [10**6]}, "tokens"),
        ("/detokenize", {"tokens": [2**70]}, "tokens"),
    ],
)
def test_what_is_wrong_is_named(path: str, body: Any, param: str) -> None:
    assert error_of(post(path, body), 400)["param"] == param


def test_reset_prefix_cache() -> None:
    async def work(client: Any, service: Any) -> Any:
        async def cached() -> int:
            body = {"prompt": "y" * 40, "max_tokens": 1}
            usage = (await client.post(COMPLETIONS, json=body)).json()["usage"]
            return usage["prompt_tokens_details"]["cached_tokens"]

        before = [await cached(), await cached()]
        answer = (await client.post("/reset_prefix_cache")).json()
        return before, answer, await cached()

    assert talk(work) == ([0, 32], {"num_dropped_blocks": 2}, 0)
