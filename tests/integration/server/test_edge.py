# SPDX-License-Identifier: Apache-2.0
"""The edge over real sockets: keys with the official client, bodies that are too large, ids on every answer."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator

import httpx
import openai
import pytest

from tests.server_process import ServerProcess, fake_server

KEY, ADMIN = "sk-test-1", "sk-admin-1"
CAP = 4096


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with fake_server(config={"api_key": [KEY], "admin_api_key": [ADMIN], "max_body_size": CAP}) as process:
        yield process


def exchange(server: ServerProcess, *parts: bytes) -> bytes:
    """All that the server says until it closes the connection."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        for part in parts:
            connection.sendall(part)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    return answer


def head(path: str, *lines: str) -> bytes:
    all_lines = [f"POST {path} HTTP/1.1", "Host: x", "Content-Type: application/json", f"Authorization: Bearer {KEY}"]
    return "\r\n".join([*all_lines, *lines, "", ""]).encode()


def test_the_official_client_with_and_without_its_key(server: ServerProcess) -> None:
    with openai.OpenAI(base_url=server.url + "/v1", api_key=KEY, max_retries=0) as client:
        answer = client.completions.create(model="fake", prompt="x", max_tokens=2)
        assert answer.choices[0].finish_reason == "length"
    with openai.OpenAI(base_url=server.url + "/v1", api_key="sk-other", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError) as caught:
            client.models.list()
        assert (caught.value.code, caught.value.type) == ("invalid_api_key", "invalid_request_error")
        assert caught.value.request_id


def test_a_body_over_the_cap_is_413_and_the_end_of_the_connection(server: ServerProcess) -> None:
    answer = exchange(server, head("/v1/completions", f"Content-Length: {CAP + 1}"), b"x" * (CAP + 1))
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in answer.lower()
    assert b"--max-body-size" in answer


def send_chunks(connection: socket.socket, num_bytes: int) -> int:
    """How many bytes could be sent before the server closed."""
    chunk, sent = b"2000\r\n" + b"x" * 0x2000 + b"\r\n", 0
    try:
        while sent < num_bytes:
            connection.sendall(chunk)
            sent += len(chunk)
    except (ConnectionResetError, BrokenPipeError):
        return sent
    return sent


def test_chunks_without_an_end_are_cut_off(server: ServerProcess) -> None:
    """A client that never stops sending is cut off long before its 50 MB are over."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(head("/v1/completions", "Transfer-Encoding: chunked"))
        assert send_chunks(connection, 50_000_000) < 25_000_000
    assert server.get("/health").status_code == 200


def test_an_announced_giant_is_refused_without_reading_it(server: ServerProcess) -> None:
    assert exchange(server, head("/v1/completions", "Content-Length: 50000000")).startswith(b"HTTP/1.1 413 ")
    waiting = head("/v1/completions", f"Content-Length: {CAP + 1}", "Expect: 100-continue")
    answer = exchange(server, waiting)
    assert answer.startswith(b"HTTP/1.1 413 "), answer[:200]


@pytest.mark.parametrize("path", ["/health", "/nothing", "/v1/models", "/"])
def test_ids_are_echoed_on_every_answer(server: ServerProcess, path: str) -> None:
    request = f"GET {path} HTTP/1.1\r\nHost: x\r\nX-Request-Id: my-id-7\r\nConnection: close\r\n\r\n"
    assert b"\r\nx-request-id: my-id-7\r\n" in exchange(server, request.encode())


def test_even_nonsense_gets_an_id(server: ServerProcess) -> None:
    answer = exchange(server, b"\x16\x03\x01 not http\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"\r\nx-request-id: " in answer


@pytest.fixture(scope="module")
def hasty() -> Iterator[ServerProcess]:
    with fake_server(config={"body_timeout": 0.5, "shutdown_timeout": 0}, step_s=0.05) as process:
        yield process


@pytest.mark.parametrize("first", [b"", b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"], ids=["at once", "after a request"])
def test_a_head_drop_by_drop_is_given_up(hasty: ServerProcess, first: bytes) -> None:
    """Each byte comes in good time, all of them do not."""
    with socket.create_connection(("127.0.0.1", hasty.port), timeout=20) as connection:
        if first:
            connection.sendall(first)
            seen = b""
            while not seen.endswith(b"}"):
                seen += connection.recv(65536)
            assert seen.startswith(b"HTTP/1.1 200 ")
        began_s, answer = time.monotonic(), b""
        connection.settimeout(0.1)
        while not answer and time.monotonic() - began_s < 15:
            connection.sendall(b"X")
            with contextlib.suppress(TimeoutError):
                answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 408 "), answer
    assert b"did not arrive within 0.5 s" in answer
    assert 0.4 < time.monotonic() - began_s < 10


def test_a_connection_that_says_nothing_is_closed(hasty: ServerProcess) -> None:
    with socket.create_connection(("127.0.0.1", hasty.port), timeout=10) as connection:
        assert connection.recv(1024) == b""


def test_a_long_answer_is_not_cut_by_the_clock_of_heads(hasty: ServerProcess) -> None:
    body = b'{"prompt": "x", "max_tokens": 24}'
    assert exchange(
        hasty, head("/v1/completions", f"Content-Length: {len(body)}", "Connection: close"), body
    ).startswith(b"HTTP/1.1 200 ")


def test_no_shutdown_timeout_aborts_at_once(hasty: ServerProcess) -> None:
    """Last of its server: running requests get no time at all."""
    answers: list[httpx.Response] = []
    body = {"prompt": "x", "max_tokens": 200, "ignore_eos": True}
    thread = threading.Thread(
        target=lambda: answers.append(httpx.post(hasty.url + "/v1/completions", json=body, timeout=60))
    )
    thread.start()
    hasty.wait_for(lambda memory: memory["requests"]["num_open"] == 1)
    began_s = time.monotonic()
    hasty.signal()
    assert hasty.wait() == 0
    thread.join()
    assert time.monotonic() - began_s < 5
    assert answers[0].json()["error"]["code"] == "draining"


def test_a_client_that_still_sends_reads_the_whole_answer() -> None:
    """Megabytes are on their way when the body times out: a plain close would reset the connection and take the answer along."""
    with fake_server(config={"body_timeout": 0.2, "shutdown_timeout": 0}, step_s=0.05) as process:
        for _ in range(5):
            connection = socket.create_connection(("127.0.0.1", process.port), timeout=10)
            head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 50000000\r\n\r\n"
            connection.sendall(head.encode())
            answer = b""
            connection.setblocking(False)
            until = time.monotonic() + 8
            while time.monotonic() < until:
                with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
                    connection.send(b"x" * 1000)
                try:
                    part = connection.recv(65536)
                except BlockingIOError:
                    time.sleep(0.0005)
                    continue
                if not part:
                    break
                answer += part
            connection.close()
            head_part, _, body = answer.partition(b"\r\n\r\n")
            assert head_part.startswith(b"HTTP/1.1 408 ") and json.loads(body)["error"]["message"]
