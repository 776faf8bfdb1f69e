# SPDX-License-Identifier: Apache-2.0
"""Clients that vanish at every moment, by raw sockets: the engine drops their requests and nothing stays held."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Iterator

import pytest

from tests.server_process import ServerProcess, fake_server

MOMENTS = ["headers", "half body", "body", "first chunk", "third chunk"]


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with fake_server(step_s=0.03, max_running=2, max_waiting=50) as process:
        yield process


def connect(server: ServerProcess) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=10)


def request_bytes(*, is_stream: bool, num_choices: int = 1, num_prompts: int = 1) -> tuple[bytes, bytes]:
    prompt = "a long story" if num_prompts == 1 else ["a long story"] * num_prompts
    body = json.dumps(
        {"prompt": prompt, "max_tokens": 200, "ignore_eos": True, "stream": is_stream, "n": num_choices}
    ).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode(), body


def leave(connection: socket.socket, how: str) -> None:
    if how == "reset":
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def assert_nothing_held(server: ServerProcess) -> None:
    memory = server.wait_for(lambda memory: memory["requests"]["num_open"] == 0)
    owners = [row["owner"] for row in memory["ledger"] if row["depth"] == 1]
    assert owners == ["prefix cache"]


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize(("num_choices", "num_prompts"), [(1, 1), (2, 3)])
def test_a_streaming_client_leaves(
    server: ServerProcess, moment: str, how: str, num_choices: int, num_prompts: int
) -> None:
    head, body = request_bytes(is_stream=True, num_choices=num_choices, num_prompts=num_prompts)
    connection = connect(server)
    connection.sendall(head)
    if moment == "half body":
        connection.sendall(body[:10])
    elif moment != "headers":
        connection.sendall(body)
    if moment == "body":
        server.wait_for(lambda memory: memory["requests"]["num_open"] == 1)
    seen = b""
    while seen.count(b"data: ") < {"first chunk": 1, "third chunk": 3}.get(moment, 0):
        seen += connection.recv(4096)
    leave(connection, how)
    assert_nothing_held(server)


def test_a_client_leaves_before_a_whole_answer(server: ServerProcess) -> None:
    head, body = request_bytes(is_stream=False)
    connection = connect(server)
    connection.sendall(head + body)
    server.wait_for(lambda memory: memory["requests"]["num_open"] == 1)
    leave(connection, "close")
    assert_nothing_held(server)


def test_clients_leave_while_waiting_in_the_queue(server: ServerProcess) -> None:
    connections = [connect(server) for _ in range(6)]
    for index, connection in enumerate(connections):
        head, body = request_bytes(is_stream=bool(index % 2))
        connection.sendall(head + body)
    server.wait_for(lambda memory: memory["requests"]["num_open"] == 6)
    for connection in reversed(connections):
        leave(connection, "close")
    assert_nothing_held(server)


def test_a_client_that_stays_is_served_after_all_that(server: ServerProcess) -> None:
    head, body = request_bytes(is_stream=True)
    body = body.replace(b'"max_tokens": 200', b'"max_tokens": 3  ')
    with connect(server) as connection:
        connection.sendall(head + body)
        seen = b""
        while b"[DONE]" not in seen:
            seen += connection.recv(4096)
    assert b"HTTP/1.1 200 OK" in seen


def test_leaving_while_sending_the_body_is_no_error() -> None:
    with fake_server(step_s=0.03) as process:
        for moment in (b"", b"{"):
            with connect(process) as connection:
                connection.sendall(request_bytes(is_stream=True)[0] + moment)
        process.wait_for(lambda memory: memory["requests"]["num_open"] == 0)
        process.signal()
        assert process.wait() == 0
        assert "Traceback" not in process.output


def test_the_413_reaches_a_client_that_is_still_sending(server: ServerProcess) -> None:
    head = (
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9000000\r\n\r\n"
    )
    with connect(server) as connection:
        connection.sendall(head)
        connection.sendall(b"x" * 9_000_000)
        answer = connection.recv(4096)
    assert b"413" in answer.split(b"\r\n")[0]


@pytest.mark.parametrize("raw", [b"\x16\x03\x01 hello\r\n\r\n", b"GET / HTTP/1.1\r\nX: " + b"a" * 200_000])
def test_bytes_that_are_not_http_get_our_body_too(server: ServerProcess, raw: bytes) -> None:
    with connect(server) as connection:
        connection.sendall(raw)
        head, body = connection.recv(4096).split(b"\r\n\r\n", 1)
    assert head.startswith(b"HTTP/1.1 400")
    assert json.loads(body)["error"]["code"] == "invalid_http"
