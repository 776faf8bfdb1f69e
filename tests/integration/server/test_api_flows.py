# SPDX-License-Identifier: Apache-2.0
"""What programs do with a server, through the official client and a raw socket, with the embedded model."""

from __future__ import annotations

import concurrent.futures
import itertools
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema
import openai
import pydantic
import pytest

from tests.server_process import ServerProcess, engine_server

USER: list[Any] = [{"role": "user", "content": "Write something about a town."}]
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "look_up", "description": "Finds a person.", "parameters": PERSON}},
    {"type": "function", "function": {"name": "now"}},
]


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with engine_server("embedded", memory="256MiB", max_num_seqs=8, threads=1) as process:
        yield process


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0, timeout=120)


def chat(client: openai.OpenAI, **body: Any) -> Any:
    return client.chat.completions.create(
        **{"model": "embedded", "messages": USER, "max_tokens": 60, "seed": 3, **body}
    )


def test_schema_whole_streamed_and_parsed(client: openai.OpenAI) -> None:
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}}
    answer = chat(client, response_format=wanted, n=4)
    for choice in answer.choices:
        jsonschema.validate(json.loads(choice.message.content), PERSON)
        assert choice.finish_reason == "stop"
    assert len({choice.message.content for choice in answer.choices}) > 1
    streamed = "".join(
        chunk.choices[0].delta.content or "" for chunk in chat(client, response_format=wanted, stream=True)
    )
    assert streamed == chat(client, response_format=wanted).choices[0].message.content

    class Person(pydantic.BaseModel):
        name: str
        tags: list[str]

    parsed = client.chat.completions.parse(
        model="embedded", messages=USER, max_tokens=60, seed=1, response_format=Person
    )
    assert isinstance(parsed.choices[0].message.parsed, Person)


def test_an_answer_without_end_is_closed_and_says_so(client: openai.OpenAI) -> None:
    schema = {"type": "array", "items": {"type": "integer"}, "minItems": 5}
    wanted = {"type": "json_schema", "json_schema": {"name": "list", "schema": schema}}
    choice = chat(client, response_format=wanted, max_tokens=40, logit_bias={str(comma(client)): 20}).choices[0]
    assert len(json.loads(choice.message.content)) >= 5
    assert (choice.finish_reason, choice.model_extra["stop_reason"]) == ("stop", "max_tokens")


def comma(client: openai.OpenAI) -> int:
    response = httpx.post(
        f"{str(client.base_url).removesuffix('/v1/')}/tokenize", json={"prompt": ",", "add_special_tokens": False}
    )
    return int(response.json()["tokens"][0])


def test_other_languages(client: openai.OpenAI) -> None:
    chosen = chat(client, extra_body={"structured_outputs": {"choice": ["red", "blue"]}})
    assert chosen.choices[0].message.content in ("red", "blue")
    plain: dict[str, Any] = {"model": "embedded", "prompt": "The year", "max_tokens": 20}
    matched = client.completions.create(**plain, extra_body={"guided_regex": " (19|20)[0-9]{2}"})
    assert matched.choices[0].text[:3] in (" 19", " 20") and matched.choices[0].finish_reason == "stop"
    anything = chat(client, response_format={"type": "json_object"}, max_tokens=200)
    assert isinstance(json.loads(anything.choices[0].message.content), dict)


def test_tools_forced_streamed_and_answered(client: openai.OpenAI) -> None:
    named: Any = {"type": "function", "function": {"name": "look_up"}}
    choice = chat(client, tools=TOOLS, tool_choice=named).choices[0]
    (call,) = choice.message.tool_calls
    assert (choice.finish_reason, call.function.name) == ("tool_calls", "look_up")
    jsonschema.validate(json.loads(call.function.arguments), PERSON)
    arguments = ""
    for chunk in chat(client, tools=TOOLS, tool_choice=named, stream=True):
        for delta in chunk.choices[0].delta.tool_calls or ():
            arguments += delta.function.arguments
    assert arguments == call.function.arguments
    required = chat(client, tools=TOOLS, tool_choice="required", parallel_tool_calls=False, n=3)
    for choice in required.choices:
        (each,) = choice.message.tool_calls
        assert each.function.name in ("look_up", "now")
        schema = PERSON if each.function.name == "look_up" else {"type": "object", "maxProperties": 0}
        jsonschema.validate(json.loads(each.function.arguments), schema)
    result = {"role": "tool", "tool_call_id": call.id, "content": "He is 40."}
    turns = [*USER, {"role": "assistant", "tool_calls": [call.model_dump()]}, result]
    answered = chat(client, tools=TOOLS, messages=turns)
    assert answered.usage.prompt_tokens > chat(client, messages=USER).usage.prompt_tokens + 20


def test_a_schema_beside_tools_gives_calls_or_json(client: openai.OpenAI) -> None:
    """What agent frameworks send: tools, and the form of the last answer."""
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}}
    for choice in chat(client, tools=TOOLS, response_format=wanted, n=4, max_tokens=200).choices:
        if choice.finish_reason == "tool_calls":
            for call in choice.message.tool_calls:
                schema = PERSON if call.function.name == "look_up" else {"type": "object", "maxProperties": 0}
                jsonschema.validate(json.loads(call.function.arguments), schema)
        else:
            assert choice.finish_reason == "stop"
            jsonschema.validate(json.loads(choice.message.content), PERSON)


def test_logprobs_of_a_structured_answer_are_those_of_the_model(client: openai.OpenAI) -> None:
    choice = chat(client, extra_body={"guided_choice": ["aa", "bb"]}, logprobs=True, top_logprobs=2).choices[0]
    content = choice.logprobs.content
    assert len(content) >= 2 and all(len(entry.top_logprobs) == 2 for entry in content)
    assert content[0].logprob <= content[0].top_logprobs[0].logprob


def test_the_long_prompt(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as failure:
        chat(client, messages=[{"role": "user", "content": "the river " * 3000}], max_tokens=7)
    error = failure.value
    assert (error.code, error.param) == ("context_length_exceeded", "messages")
    body: Any = error.body
    num_prompt, num_output = body["num_prompt_tokens"], body["num_output_tokens"]
    assert (body["max_model_len"], num_output) == (4096, 7) and num_prompt > 4096
    assert body["message"] == (
        f"This model's maximum context length is 4096 tokens. However, you requested {num_prompt + 7} tokens "
        f"({num_prompt} in the messages, 7 in the completion). Please reduce the length of the messages or completion."
    )


HOSTILE: list[dict[str, Any]] = [
    {"guided_regex": "(((a{1000}){1000}){1000})"},
    {"guided_regex": "(" * 3000 + "a" + ")" * 3000},
    {"guided_json": {"allOf": [{"type": "string", "pattern": f"a{{{number}}}"} for number in range(60)]}},
    {"guided_json": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}},
    {"guided_json": {"type": "object", "properties": {f"p{number}": {} for number in range(3000)}}},
    {"guided_grammar": "start: start"},
    {"guided_json": {"not": {}}},
]


def test_hostile_languages_are_400_and_others_go_on(client: openai.OpenAI, server: ServerProcess) -> None:
    """Another client streams meanwhile, and none of its gaps is as long as what the worst of them takes to be refused."""
    times: list[float] = []

    def stream() -> None:
        chunks = chat(client, stream=True, max_tokens=400, extra_body={"ignore_eos": True})
        times.extend(time.monotonic() for _ in chunks)

    other = threading.Thread(target=stream)
    other.start()
    with concurrent.futures.ThreadPoolExecutor(4) as pool:

        def send(fields: dict[str, Any]) -> httpx.Response:
            body = {"messages": USER, "max_tokens": 20, **fields}
            return httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=120)

        answers = list(pool.map(send, HOSTILE))
    other.join()
    assert [answer.status_code for answer in answers] == [400] * len(HOSTILE), [answer.text for answer in answers]
    assert {answer.json()["error"]["code"] for answer in answers} == {"invalid_grammar"}
    assert len(times) >= 300  # a chunk may carry the text of two tokens
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert max(gaps) < 2.0
    assert server.get("/health").json()["status"] == "ok"


def test_a_raw_socket_reads_a_structured_stream_and_leaves(server: ServerProcess) -> None:
    body = json.dumps(
        {"messages": USER, "stream": True, "max_tokens": 3000, "guided_json": {"type": "array", "minItems": 900}}
    )
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as raw:
        raw.sendall((head + body).encode())
        received = b""
        while received.count(b"data: ") < 10:
            part = raw.recv(4096)
            assert part, received
            received += part
    assert b"200 OK" in received and b'"content":"["' in received.replace(b" ", b"")
    server.wait_for(lambda memory: memory["requests"]["num_open"] == 0 and memory["sequences"] == [])
