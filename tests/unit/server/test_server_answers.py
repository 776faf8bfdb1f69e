# SPDX-License-Identifier: Apache-2.0
"""Answers whole and streamed: shapes, choices, log probabilities, usage, ends."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import httpx
import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from tests.fake_service import WORDS, FakeService
from tests.server_client import CHAT, COMPLETIONS, HELLO, client_of, events, post, talk
from ziggurat.server.app import create_app


def words(start: int, count: int) -> str:
    """What the fake says after a prompt of ``start`` tokens."""
    return "".join(f" {WORDS[(start + step) % len(WORDS)]}" for step in range(count))


def test_chat_answer() -> None:
    answer = post(CHAT, {"messages": HELLO, "max_tokens": 4}).json()
    ChatCompletion.model_validate(answer, strict=True)
    num_prompt = answer["usage"]["prompt_tokens"]
    assert answer["id"].startswith("chatcmpl-")
    assert (answer["object"], answer["model"]) == ("chat.completion", "fake-1")
    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": words(num_prompt, 4), "refusal": None}
    assert (choice["finish_reason"], choice["logprobs"]) == ("length", None)
    assert answer["usage"]["completion_tokens"] == 4
    assert answer["usage"]["total_tokens"] == num_prompt + 4
    assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}


def test_the_name_that_was_asked_for_comes_back() -> None:
    assert post(CHAT, {"messages": HELLO, "model": "fake"}).json()["model"] == "fake"


def test_finish_reasons() -> None:
    def end(**body: Any) -> tuple[str, Any]:
        choice = post(COMPLETIONS, {"prompt": "x", "max_tokens": 60, **body}).json()["choices"][0]
        return choice["finish_reason"], choice["stop_reason"]

    assert end() == ("stop", None)
    assert end(ignore_eos=True) == ("length", None)
    assert end(stop="brick") == ("stop", "brick")
    assert end(stop_token_ids=[260]) == ("stop", 260)


def test_stop_string_is_left_out_unless_asked() -> None:
    body = {"prompt": "x", "stop": [" steps"]}
    assert post(COMPLETIONS, body).json()["choices"][0]["text"] == " ziggurat rises in"
    kept = post(COMPLETIONS, {**body, "include_stop_str_in_output": True}).json()["choices"][0]["text"]
    assert kept == " ziggurat rises in steps"


def test_cached_tokens_are_always_reported() -> None:
    async def work(client: httpx.AsyncClient, _: FakeService) -> list[int]:
        body = {"prompt": "a prompt that is longer than two blocks of sixteen", "max_tokens": 1}
        usages = [(await client.post(COMPLETIONS, json=body)).json()["usage"] for _ in range(2)]
        return [usage["prompt_tokens_details"]["cached_tokens"] for usage in usages]

    assert talk(work) == [0, 48]


@pytest.mark.parametrize("stream", [False, True])
def test_choices_of_many_prompts_are_numbered_prompt_by_prompt(stream: bool) -> None:
    body = {"prompt": ["a", "bcd"], "n": 2, "max_tokens": 3, "stream": stream}
    response = post(COMPLETIONS, body)
    if stream:
        texts = [""] * 4
        for event in events(response.text)[:-1]:
            for choice in event["choices"]:
                texts[choice["index"]] += choice["text"]
    else:
        answer = response.json()
        Completion.model_validate(answer, strict=True)
        assert answer["usage"]["prompt_tokens"] == 4
        assert answer["usage"]["completion_tokens"] == 12
        texts = [choice["text"] for choice in answer["choices"]]
    assert texts == [words(1, 3), words(2, 3), words(3, 3), words(4, 3)]


def test_prompts_of_token_ids() -> None:
    one = post(COMPLETIONS, {"prompt": [104, 105], "echo": True, "max_tokens": 1}).json()["choices"]
    many = post(COMPLETIONS, {"prompt": [[104], [105, 106]], "echo": True, "max_tokens": 1}).json()["choices"]
    assert [choice["text"] for choice in one] == ["hi" + words(2, 1)]
    assert [choice["text"] for choice in many] == ["h" + words(1, 1), "ij" + words(2, 1)]


def test_echo_while_streaming() -> None:
    response = post(COMPLETIONS, {"prompt": ["a", "bc"], "n": 2, "echo": True, "max_tokens": 1, "stream": True})
    texts = [""] * 4
    for event in events(response.text)[:-1]:
        texts[event["choices"][0]["index"]] += event["choices"][0]["text"]
    assert texts == ["a" + words(1, 1), "a" + words(2, 1), "bc" + words(2, 1), "bc" + words(3, 1)]


PROMPT_LISTS = {
    "tokens": ["x", "y", "z"],
    "token_logprobs": [None, -2.0, -2.0],
    "top_logprobs": [None, {"a": -1.0, "y": -2.0}, {"a": -1.0, "z": -2.0}],
    "text_offset": [0, 1, 2],
}


@pytest.mark.parametrize("stream", [False, True])
def test_echo_with_logprobs_scores_the_prompt(stream: bool) -> None:
    body = {"prompt": ["xyz", "q"], "n": 2, "echo": True, "logprobs": 2, "max_tokens": 1, "stream": stream}
    response = post(COMPLETIONS, body)
    found: dict[int, dict[str, Any]] = {}
    if stream:
        for event in events(response.text)[:-1]:
            (choice,) = event["choices"]
            so_far = found.setdefault(choice["index"], {"text": "", "logprobs": {name: [] for name in PROMPT_LISTS}})
            so_far["text"] += choice["text"]
            for name in PROMPT_LISTS:
                so_far["logprobs"][name] += choice["logprobs"][name]
    else:
        found = {choice["index"]: choice for choice in response.json()["choices"]}
    assert sorted(found) == [0, 1, 2, 3]
    for index in (0, 1):
        assert found[index]["text"] == "xyz" + words(3 + index, 1)
        lists = found[index]["logprobs"]
        assert {name: values[:3] for name, values in lists.items()} == PROMPT_LISTS
        assert lists["tokens"][3:] == [words(3 + index, 1)] and lists["text_offset"][3:] == [3]
    short = found[2]["logprobs"]
    assert short["tokens"] == ["q", words(1, 1)] and short["token_logprobs"][0] is None


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_alone_is_scored_with_max_tokens_0(stream: bool) -> None:
    response = post(COMPLETIONS, {"prompt": "xyz", "echo": True, "logprobs": 2, "max_tokens": 0, "stream": stream})
    if stream:
        echo, end, _ = events(response.text)
        assert (echo["choices"][0]["text"], echo["choices"][0]["logprobs"]) == ("xyz", PROMPT_LISTS)
        assert (end["choices"][0]["text"], end["choices"][0]["finish_reason"]) == ("", "length")
        return
    answer = response.json()
    (choice,) = answer["choices"]
    assert (choice["text"], choice["finish_reason"], choice["logprobs"]) == ("xyz", "length", PROMPT_LISTS)
    assert answer["usage"]["completion_tokens"] == 0
    (plain,) = post(COMPLETIONS, {"prompt": "xyz", "echo": True, "max_tokens": 0}).json()["choices"]
    assert (plain["text"], plain["logprobs"]) == ("xyz", None)


def test_prompt_logprobs_have_vllms_shape() -> None:
    expected = [
        None,
        {
            "121": {"logprob": -2.0, "rank": 2, "decoded_token": "y"},
            "97": {"logprob": -1.0, "rank": 1, "decoded_token": "a"},
        },
    ]
    for number in (0, 1):
        body = {"prompt": ["xy", "qy"], "prompt_logprobs": 1, "max_tokens": 1}
        choice = post(COMPLETIONS, body).json()["choices"][number]
        assert choice["prompt_logprobs"] == expected and choice["logprobs"] is None
    chat = post(CHAT, {"messages": HELLO, "prompt_logprobs": 0, "max_tokens": 1}).json()
    assert len(chat["prompt_logprobs"]) == chat["usage"]["prompt_tokens"]
    assert chat["prompt_logprobs"][0] is None and all(len(entry) == 1 for entry in chat["prompt_logprobs"][1:])
    assert "prompt_logprobs" not in post(CHAT, {"messages": HELLO, "max_tokens": 1}).json()


def test_best_of_keeps_the_best_and_counts_all() -> None:
    body = {"prompt": ["a", "bcd"], "n": 2, "best_of": 5, "max_tokens": 3}
    answer = post(COMPLETIONS, body).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert [choice["text"] for choice in answer["choices"]] == [words(5, 3), words(4, 3), words(7, 3), words(6, 3)]
    assert all(choice["logprobs"] is None for choice in answer["choices"])
    assert answer["usage"]["completion_tokens"] == 2 * 5 * 3
    same = post(COMPLETIONS, {"prompt": "a", "n": 2, "best_of": 2, "max_tokens": 3, "stream": True})
    assert same.status_code == 200


def test_chat_stream() -> None:
    body = {"messages": HELLO, "max_tokens": 3, "n": 2, "stream": True, "stream_options": {"include_usage": True}}
    response = post(CHAT, body)
    assert response.headers["content-type"].startswith("text/event-stream")
    *chunks, usage, done = events(response.text)
    assert done == "[DONE]"
    for chunk in (*chunks, usage):
        ChatCompletionChunk.model_validate(chunk, strict=True)
    assert len({chunk["id"] for chunk in chunks}) == 1
    roles = [chunk["choices"][0] for chunk in chunks[:2]]
    assert [(choice["index"], choice["delta"]) for choice in roles] == [
        (index, {"role": "assistant", "content": ""}) for index in range(2)
    ]
    for index in range(2):
        mine = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == index]
        text = "".join(choice["delta"].get("content", "") for choice in mine)
        assert text == words(usage["usage"]["prompt_tokens"] + index, 3)
        assert [choice["finish_reason"] for choice in mine] == [None, None, None, "length"]
    assert all(chunk["usage"] is None for chunk in chunks)
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 6
    assert "cached_tokens" in usage["usage"]["prompt_tokens_details"]


def test_a_stream_without_usage_has_none() -> None:
    chunks = events(post(CHAT, {"messages": HELLO, "stream": True, "max_tokens": 2}).text)
    assert all("usage" not in chunk and chunk["choices"] for chunk in chunks[:-1])


def test_running_usage() -> None:
    body = {"prompt": "x", "max_tokens": 3, "stream": True, "stream_options": {"continuous_usage_stats": True}}
    chunks = events(post(COMPLETIONS, body).text)[:-1]
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks] == [1, 2, 3]


@pytest.mark.parametrize("num_top", [None, 0, 3])
def test_chat_logprobs(num_top: int | None) -> None:
    body = {"messages": HELLO, "max_tokens": 14, "logprobs": True}
    if num_top is not None:
        body["top_logprobs"] = num_top
    answer = post(CHAT, body).json()
    ChatCompletion.model_validate(answer, strict=True)
    choice = answer["choices"][0]
    content = choice["logprobs"]["content"]
    assert "".join(entry["token"] for entry in content) == choice["message"]["content"]
    assert b"".join(bytes(entry["bytes"]) for entry in content).decode() == choice["message"]["content"]
    for entry in content:
        assert entry["logprob"] == pytest.approx(math.log(0.5))
        assert len(entry["top_logprobs"]) == (num_top or 0)
    streamed = events(post(CHAT, {**body, "stream": True}).text)[:-1]
    pieces = [chunk["choices"][0]["logprobs"] for chunk in streamed]
    assert [entry for piece in pieces if piece for entry in piece["content"]] == content


@pytest.mark.parametrize("num_top", [0, 2])
def test_completion_logprobs(num_top: int) -> None:
    body = {"prompt": "xy", "max_tokens": 14, "logprobs": num_top}
    answer = post(COMPLETIONS, body).json()
    Completion.model_validate(answer, strict=True)
    choice = answer["choices"][0]
    logprobs = choice["logprobs"]
    assert "".join(logprobs["tokens"]) == choice["text"]
    for token, offset in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
        assert choice["text"][offset:].startswith(token)
    assert logprobs["token_logprobs"] == pytest.approx([math.log(0.5)] * 14)
    if num_top:
        for token, top in zip(logprobs["tokens"], logprobs["top_logprobs"], strict=True):
            assert token in top
            assert len(top) <= num_top + 1
    else:
        assert logprobs["top_logprobs"] is None
    streamed = events(post(COMPLETIONS, {**body, "stream": True}).text)[:-1]
    for name in ("tokens", "token_logprobs", "text_offset"):
        assert [value for chunk in streamed for value in chunk["choices"][0]["logprobs"][name]] == logprobs[name]


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_engine_death_ends_a_stream_with_an_error_line(path: str) -> None:
    body = {"stream": True} | ({"messages": HELLO} if path == CHAT else {"prompt": "x"})

    async def work(client: httpx.AsyncClient, service: FakeService) -> httpx.Response:
        service.fail_after = 2
        return await client.post(path, json=body)

    response = talk(work)
    *_, last = events(response.text)
    assert response.status_code == 200
    assert last["error"]["code"] == "engine_error"
    assert "told to fail" in last["error"]["message"]


def test_engine_death_before_the_answer_is_500() -> None:
    async def work(client: httpx.AsyncClient, service: FakeService) -> httpx.Response:
        service.fail_after = 2
        return await client.post(CHAT, json={"messages": HELLO})

    response = talk(work)
    assert (response.status_code, response.json()["error"]["code"]) == (500, "engine_error")


def test_two_live_requests_may_ask_for_one_id() -> None:
    async def work(client: httpx.AsyncClient, _: FakeService) -> list[str]:
        body = {"prompt": "x", "request_id": "twin", "max_tokens": 5}
        answers = await asyncio.gather(*(client.post(COMPLETIONS, json=body) for _ in range(2)))
        third = await client.post(COMPLETIONS, json=body)
        return [answer.json()["id"] for answer in (*answers, third)]

    assert talk(work, step_s=0.01) == ["cmpl-twin", "cmpl-twin~2", "cmpl-twin"]


def test_nothing_is_held_after_any_mixture_of_ends() -> None:
    async def run() -> tuple[FakeService, int]:
        service = FakeService(step_s=0.001, max_running=3)
        app = create_app(service)
        async with client_of(app) as client:
            bodies = [
                {"prompt": "x" * (1 + index * 29), "n": 1 + index % 3, "stream": bool(index % 2)} for index in range(12)
            ]
            tasks = [asyncio.create_task(client.post(COMPLETIONS, json=body)) for body in bodies]
            for index, task in enumerate(tasks):
                await asyncio.sleep(0.003)
                if index % 3 == 0:
                    task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return service, app.state.rooms.state.num_live

    service, num_live = asyncio.run(run())
    assert (service.running, num_live) == ({}, 0)


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_tokens_without_text_make_no_chunk_unless_logprobs_are_wanted(path: str) -> None:
    body: dict[str, Any] = {"messages": HELLO} if path == CHAT else {"prompt": "x"}
    body |= {"max_tokens": 6, "stream": True}
    chunks = events(post(path, body, is_holding_text=True).text)[:-1]
    assert len(chunks) == 3 + (path == CHAT)
    body["logprobs"] = True if path == CHAT else 0
    chunks = events(post(path, body, is_holding_text=True).text)[:-1]
    assert len(chunks) == 6 + (path == CHAT)
    assert all(chunk["choices"][0]["logprobs"] for chunk in chunks[-6:])


def test_half_a_character_shows_as_its_bytes() -> None:
    class Half(FakeService):
        def token_bytes(self, token_id: int) -> bytes:
            return b"\xe6\x97"

    async def run() -> list[Any]:
        async with client_of(create_app(Half(is_holding_text=True))) as client:
            chat = {"messages": HELLO, "max_tokens": 1, "logprobs": True}
            text = {"prompt": [5], "max_tokens": 1, "logprobs": 1}
            return [(await client.post(path, json=body)).json() for path, body in ((CHAT, chat), (COMPLETIONS, text))]

    chat, text = asyncio.run(run())
    (entry,) = chat["choices"][0]["logprobs"]["content"]
    assert (entry["token"], entry["bytes"]) == ("\ufffd", [0xE6, 0x97])
    assert text["choices"][0]["logprobs"]["tokens"] == ["bytes:\\xe6\\x97"]
