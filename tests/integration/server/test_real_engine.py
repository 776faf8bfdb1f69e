# SPDX-License-Identifier: Apache-2.0
"""The whole way, HTTP to token and back, with a small model of random weights and the official client."""

from __future__ import annotations

import concurrent.futures
import json
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.server_process import ServerProcess, engine_server
from ziggurat.memory.machine import Machine

MODEL_NAME = "tiny"
MAX_MODEL_LEN = 224
MAX_NUM_SEQS = 4
MAX_QUEUED = 3
BUDGET_MIB = 56
USER = [{"role": "user", "content": "a first message that fills more than one block"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.checkpoints import write_checkpoint

    return write_checkpoint(tmp_path_factory.mktemp("model"), "qwen3")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[ServerProcess]:
    with engine_server(
        folder,
        served_model_name=MODEL_NAME,
        memory=f"{BUDGET_MIB}MiB",
        max_model_len=MAX_MODEL_LEN,
        max_num_seqs=MAX_NUM_SEQS,
        max_queued_requests=MAX_QUEUED,
        threads=1,
    ) as process:
        yield process


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0, timeout=60)


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL_NAME]
    assert client.models.retrieve(MODEL_NAME).owned_by == "ziggurat"
    with pytest.raises(openai.NotFoundError, match=MODEL_NAME):
        client.models.retrieve("other")


def test_chat_whole_and_streamed_agree(client: openai.OpenAI) -> None:
    settings: dict[str, Any] = {"model": MODEL_NAME, "messages": USER, "max_tokens": 12, "n": 2, "seed": 5}
    settings |= {"logprobs": True, "top_logprobs": 3, "extra_body": {"ignore_eos": True}}
    whole = client.chat.completions.create(**settings)
    texts = {choice.index: "" for choice in whole.choices}
    ids: dict[int, list[int]] = {index: [] for index in texts}
    ends = {}
    usage = None
    for chunk in client.chat.completions.create(**settings, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            ends[choice.index] = choice.finish_reason
            for entry in choice.logprobs.content if choice.logprobs else ():
                ids[choice.index].extend(entry.bytes)
    assert texts == {choice.index: choice.message.content for choice in whole.choices}
    assert texts[0] != texts[1]
    assert ends == {0: "length", 1: "length"}
    assert usage is not None
    assert whole.usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (whole.usage.prompt_tokens, 24)
    assert usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens >= 16
    for choice in whole.choices:
        assert choice.logprobs is not None
        content = choice.logprobs.content
        assert content is not None
        assert len(content) == 12
        assert sum((list(entry.bytes or ()) for entry in content), []) == ids[choice.index]  # noqa: RUF017
        for entry in content:
            best = [top.logprob for top in entry.top_logprobs]
            assert len(best) == 3
            assert best == sorted(best, reverse=True)
            assert entry.logprob <= best[0] + 1e-6


def test_completions_by_text_and_by_ids_agree(client: openai.OpenAI, server: ServerProcess) -> None:
    settings: dict[str, Any] = {"model": MODEL_NAME, "max_tokens": 6, "temperature": 0, "logprobs": 2}
    whole = client.completions.create(prompt=["one prompt", "another"], **settings)
    pieces = ["", ""]
    for chunk in client.completions.create(prompt=["one prompt", "another"], stream=True, **settings):
        pieces[chunk.choices[0].index] += chunk.choices[0].text
    assert pieces == [choice.text for choice in whole.choices]
    logprobs = whole.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.token_logprobs is not None
    assert 1 <= len(logprobs.token_logprobs) <= 6
    with pytest.raises(openai.BadRequestError, match="vocabulary"):
        client.completions.create(prompt=[5, 10**6], **settings)


def test_the_likelihood_of_a_text_is_that_of_its_continuation(client: openai.OpenAI, server: ServerProcess) -> None:
    """What evaluation harnesses do: generate, then score the whole text with ``echo`` and nothing to generate."""
    settings: dict[str, Any] = {"model": MODEL_NAME, "logprobs": 1, "temperature": 0}
    prompt = list(range(20, 60))
    body = {**settings, "prompt": prompt, "max_tokens": 8, "ignore_eos": True, "echo": True, "stream": True}
    lines = [line for line in httpx.post(f"{server.url}/v1/completions", json=body).text.split("\n\n") if line]
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines if not line.endswith("[DONE]")]
    streamed = [each["choices"][0]["logprobs"] for each in chunks if each["choices"][0]["logprobs"]]
    tokens = [token for lists in streamed for token in lists["tokens"]]
    logprobs = [value for lists in streamed for value in lists["token_logprobs"]]
    assert len(tokens) == len(logprobs) == 48 and logprobs[0] is None
    best = client.completions.create(
        **settings,
        prompt=prompt,
        max_tokens=8,
        n=1,
        extra_body={"ignore_eos": True, "best_of": 3, "prompt_logprobs": 0},
    )
    sampled = best.choices[0].logprobs
    assert sampled is not None and sampled.token_logprobs == logprobs[40:]
    assert best.usage is not None and best.usage.completion_tokens == 24
    scored = best.choices[0].model_extra["prompt_logprobs"]  # type: ignore[index]
    assert [next(iter(entry.values()))["logprob"] for entry in scored[1:]] == logprobs[1:40]
    alone = client.completions.create(**settings, prompt=prompt, max_tokens=0, echo=True)
    (choice,) = alone.choices
    assert choice.logprobs is not None and choice.logprobs.token_logprobs == logprobs[:40]
    assert choice.finish_reason == "length"
    assert_nothing_held(server)


def test_stop_string(client: openai.OpenAI) -> None:
    def text(**more: Any) -> Any:
        body = {"ignore_eos": True, **more}
        answer = client.completions.create(
            model=MODEL_NAME, prompt="tell me", max_tokens=40, temperature=0, extra_body=body
        )
        return answer.choices[0]

    free = text()
    visible = [character for character in free.text if character.isascii() and character.isprintable()]
    stop = visible[len(visible) // 2]
    cut = text(stop=stop)
    assert cut.text == free.text[: free.text.index(stop)]
    assert cut.finish_reason == "stop"
    assert cut.stop_reason == stop


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"n": 0}, "n"),
        ({"temperature": -1}, "temperature"),
        ({"stop": ["x"] * 1000}, "stop"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": "x" * (MAX_MODEL_LEN + 1)}, "prompt"),
        ({"model": "other"}, "model"),
        ({"logit_bias": {"999999": 1}}, "logit_bias"),
    ],
)
def test_bad_input(client: openai.OpenAI, body: dict[str, Any], param: str) -> None:
    with pytest.raises((openai.BadRequestError, openai.NotFoundError)) as caught:
        client.completions.create(**{"model": MODEL_NAME, "prompt": "x", "max_tokens": 1, **body})
    assert caught.value.body is not None
    assert caught.value.body["param"] == param  # type: ignore[index]


def test_the_longest_prompt_that_fits_and_one_more(client: openai.OpenAI) -> None:
    ids = [5] * (MAX_MODEL_LEN - 1)
    answer = client.completions.create(model=MODEL_NAME, prompt=ids, max_tokens=1)
    assert answer.usage is not None
    assert answer.usage.total_tokens == MAX_MODEL_LEN
    with pytest.raises(openai.BadRequestError, match=f"maximum context length is {MAX_MODEL_LEN} tokens"):
        client.completions.create(model=MODEL_NAME, prompt=[*ids, 5], max_tokens=1)


def assert_nothing_held(server: ServerProcess) -> None:
    memory = server.wait_for(
        lambda memory: memory["sequences"] == [] and memory["requests"]["num_open"] == 0, timeout_s=60
    )
    assert memory["kv_bytes"]["used_bytes"] == 0
    owners = {row["owner"] for row in memory["ledger"] if row["depth"] > 0 and row["num_bytes"] > 0}
    assert not any(owner.startswith(("cmpl-", "chatcmpl-")) for owner in owners), owners


def test_clients_vanish_at_every_moment(server: ServerProcess) -> None:
    body = json.dumps({"prompt": "x" * 60, "max_tokens": 150, "ignore_eos": True, "stream": True, "n": 2}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    for num_chunks in (0, 1, 5):
        for part in (body[:20], body):
            with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
                connection.sendall(head.encode() + part)
                seen = b""
                while part is body and seen.count(b"data: ") < num_chunks:
                    seen += connection.recv(4096)
    whole = body.replace(b'"stream": true', b'"stream": false')
    assert_nothing_held(server)
    before = server.get("/memory").json()["requests"]["prompt_tokens"]
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(head.replace(str(len(body)), str(len(whole))).encode() + whole)
        # On a busy machine the answer may be complete before anybody has looked: then it was counted.
        server.wait_for(
            lambda memory: memory["requests"]["num_open"] >= 1 or memory["requests"]["prompt_tokens"] > before
        )
    assert_nothing_held(server)


def test_a_full_queue_is_429_and_everybody_else_is_served(server: ServerProcess) -> None:
    def one(_: int) -> tuple[int, str | None]:
        body = {"prompt": "q" * 30, "max_tokens": 60, "ignore_eos": True}
        answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=120)
        return answer.status_code, answer.headers.get("retry-after")

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(one, range(16)))
    refused = [retry for status, retry in answers if status == 429]
    assert {status for status, _ in answers} == {200, 429}
    assert len(answers) - len(refused) >= MAX_NUM_SEQS
    assert all(int(retry or 0) >= 1 for retry in refused)
    assert_nothing_held(server)


def test_huge_bodies_stay_inside_the_budget(server: ServerProcess) -> None:
    """Four million characters through a tokenizer took 850 MiB before texts that cannot fit were found out piece by piece."""
    peak_bytes, is_over, machine = 0, threading.Event(), Machine(pid=server.process.pid)

    def watch() -> None:
        nonlocal peak_bytes
        while not is_over.is_set():
            peak_bytes = max(peak_bytes, machine.process_memory().charged_bytes)
            is_over.wait(0.02)

    def send(raw: bytes) -> int:
        headers = {"content-type": "application/json"}
        return httpx.post(f"{server.url}/v1/completions", content=raw, headers=headers, timeout=60).status_code

    watcher = threading.Thread(target=watch)
    watcher.start()
    text = b'{"prompt":"' + b"the river " * 400_000 + b'"}'
    keys = b'{"prompt":"x",' + b",".join(b'"k%d":1' % number for number in range(120_000)) + b"}"
    ids = b'{"prompt":[' + b"299," * 250_000 + b"5]}"
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(send, [text] * 8))
    statuses += [send(keys), send(ids)]
    is_over.set()
    watcher.join()
    assert set(statuses) <= {400, 429}
    assert statuses[-2:] == [400, 400]
    baseline_bytes = server.get("/memory").json()["baseline_bytes"]
    assert 0 < peak_bytes - baseline_bytes <= BUDGET_MIB << 20


def test_memory_and_metrics_tell_the_same(server: ServerProcess) -> None:
    memory = server.get("/memory").json()
    samples = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(server.get("/metrics").text)
        for sample in family.samples
    }
    for row in memory["ledger"]:
        if row["kind"] == "weights" and row["depth"] == 0:
            key = ("ziggurat:memory_bytes", (("kind", "weights"), ("tier", "ram")))
            assert samples[key] == row["num_bytes"] > 0
    labels = (("engine", "0"), ("model_name", MODEL_NAME))
    assert samples["ziggurat:generation_tokens_total", labels] == memory["requests"]["generation_tokens"] > 0
    assert samples["ziggurat:request_queue_time_seconds_count", labels] > 0
    assert samples["ziggurat:memory_budget_bytes", (("tier", "ram"),)] == BUDGET_MIB << 20
    in_budget = [row["num_bytes"] for row in memory["ledger"] if row["depth"] == 0 and row["tier"] == "ram"]
    assert sum(in_budget) <= BUDGET_MIB << 20
    assert memory["process"]["pss_bytes"] > 0


def test_sigterm_lets_running_requests_finish(server: ServerProcess) -> None:
    """Last in this file: it ends the server that all tests before it have used, which also shows that they left it healthy."""
    results: list[httpx.Response] = []
    body = {"prompt": "x" * 20, "max_tokens": 150, "ignore_eos": True}
    work = threading.Thread(
        target=lambda: results.append(httpx.post(f"{server.url}/v1/completions", json=body, timeout=120))
    )
    work.start()
    server.wait_for(lambda memory: memory["requests"]["num_open"] == 1 or not work.is_alive())
    server.signal(signal.SIGTERM)
    assert server.wait() == 0, server.output
    work.join()
    assert results[0].json()["usage"]["completion_tokens"] == 150
    assert "Traceback" not in server.output
