# SPDX-License-Identifier: Apache-2.0
"""A server's life over real sockets: loading, ready, draining, interrupted, dead."""

from __future__ import annotations

import json
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.server_process import ServerProcess, fake_server
from ziggurat.errors import ConfigError
from ziggurat.server.config import ServerConfig
from ziggurat.server.listen import address_url, bind_socket
from ziggurat.server.run import run_server


def stream(server: ServerProcess, body: dict[str, Any]) -> Iterator[str]:
    """Data payloads as they come."""
    with httpx.stream("POST", server.url + "/v1/completions", json={**body, "stream": True}, timeout=30) as response:
        for line in response.iter_lines():
            if line.startswith("data: "):
                yield line.removeprefix("data: ")


def in_background(work: Any) -> tuple[threading.Thread, list[Any]]:
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.extend(work()))
    thread.start()
    return thread, results


def test_health_answers_while_the_model_loads() -> None:
    with fake_server(load_s=1.5, wait_ready=False) as server:
        assert server.get("/health").json() == {"status": "ok", "phase": "loading"}
        answer = server.get("/ready")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "loading")
        assert int(answer.headers["retry-after"]) >= 1
        chat = httpx.post(server.url + "/v1/chat/completions", json={"messages": []})
        assert (chat.status_code, chat.json()["error"]["code"]) == (503, "loading")
        assert server.get("/metrics").status_code == 200
        assert server.get("/").status_code == 200
        assert server.url in server.read_until("ready in")
        assert server.get("/ready").status_code == 200


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_loading_ends_at_once_and_quietly(number: signal.Signals) -> None:
    with fake_server(load_s=60, wait_ready=False) as server:
        assert server.get("/health").status_code == 200
        began_s = time.monotonic()
        server.signal(number)
        assert server.wait() == 128 + number
        assert time.monotonic() - began_s < 2
        assert "interrupted while loading" in server.output
        assert "Traceback" not in server.output


def test_a_model_that_cannot_be_loaded_ends_the_server_with_its_error() -> None:
    with fake_server(load_error="the checkpoint is damaged: 3 tensors are missing", wait_ready=False) as server:
        assert server.wait() == 1
        assert "error: the checkpoint is damaged: 3 tensors are missing" in server.output
        assert "Traceback" not in server.output


def test_port_in_use_is_known_before_loading() -> None:
    def load() -> None:
        raise AssertionError("the model must not be loaded")

    with fake_server() as server:
        with pytest.raises(ConfigError, match=rf"port {server.port} on 127.0.0.1 is already in use.*--port"):
            run_server(ServerConfig(port=server.port), load)
        assert server.get("/ready").status_code == 200


@pytest.mark.parametrize("host", ["203.0.113.7", "no-such-host.invalid", "a" * 70])
def test_a_host_that_is_not_ours(host: str) -> None:
    with pytest.raises(ConfigError, match="--host"):
        bind_socket(ServerConfig(host=host, port=0))


def test_small_answers_do_not_wait_for_acknowledgements() -> None:
    """asyncio sets TCP_NODELAY only on sockets that name their protocol; without it a request took 44 ms instead of 4."""
    with bind_socket(ServerConfig(port=0)) as listener:
        assert listener.proto == socket.IPPROTO_TCP
        client = socket.create_connection(listener.getsockname())
        connection, _ = listener.accept()
        with client, connection:
            assert connection.proto == socket.IPPROTO_TCP


def test_ipv6() -> None:
    if not socket.has_ipv6:
        pytest.skip("this Python has no IPv6")
    try:
        listener = bind_socket(ServerConfig(host="::1", port=0))
    except ConfigError as error:
        pytest.skip(f"no IPv6 loopback here: {error}")
    with listener:
        assert address_url(listener).startswith("http://[::1]:")


def test_two_servers_get_two_free_ports() -> None:
    with bind_socket(ServerConfig(port=0)) as one, bind_socket(ServerConfig(port=0)) as two:
        assert one.getsockname()[1] != two.getsockname()[1]


def test_sigterm_drains() -> None:
    with fake_server(step_s=0.05) as server:
        thread, payloads = in_background(lambda: stream(server, {"prompt": "x", "max_tokens": 20}))
        server.wait_for(lambda memory: memory["requests"]["num_open"] == 1)
        server.signal()
        server.read_until("SIGTERM: no new requests; 1 running")
        refused = httpx.post(server.url + "/v1/completions", json={"prompt": "y"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        assert server.get("/ready").json()["error"]["code"] == "draining"
        assert server.get("/health").status_code == 200
        assert server.get("/memory").json()["phase"] == "draining"
        assert server.wait() == 0
        thread.join()
        assert payloads[-1] == "[DONE]"
        assert json.loads(payloads[-2])["choices"][0]["finish_reason"] == "length"
        assert "closed" in server.output


def test_the_shutdown_timeout_aborts_what_is_left() -> None:
    with fake_server(step_s=0.5, config={"port": 0, "shutdown_timeout": 0.2}) as server:
        thread, payloads = in_background(lambda: stream(server, {"prompt": "x", "max_tokens": 200, "ignore_eos": True}))
        server.wait_for(lambda memory: memory["requests"]["num_open"] == 1)
        began_s = time.monotonic()
        server.signal()
        assert server.wait() == 0
        assert time.monotonic() - began_s < 10
        thread.join()
        assert json.loads(payloads[-1])["error"]["code"] == "draining"


def test_a_second_signal_ends_at_once() -> None:
    with fake_server(step_s=0.5) as server:
        thread, _ = in_background(
            lambda: ignore_cut(stream(server, {"prompt": "x", "max_tokens": 200, "ignore_eos": True}))
        )
        server.wait_for(lambda memory: memory["requests"]["num_open"] == 1)
        server.signal(signal.SIGINT)
        server.read_until("no new requests")
        server.signal(signal.SIGINT)
        assert server.wait(5) == 128 + signal.SIGINT
        assert "Traceback" not in server.output
        thread.join()


def ignore_cut(payloads: Iterator[str]) -> Iterator[str]:
    try:
        yield from payloads
    except httpx.RemoteProtocolError:
        return


def test_engine_death_ends_every_stream_and_the_process() -> None:
    with fake_server(step_s=0.2, fail_after=5) as server:
        work = [in_background(lambda: stream(server, {"prompt": "x", "max_tokens": 60})) for _ in range(3)]
        for thread, _ in work:
            thread.join()
        assert server.wait() == 1
        for _, payloads in work:
            assert json.loads(payloads[-1])["error"]["code"] == "engine_error"
        assert "error: the fake engine was told to fail" in server.output


def test_idle_keep_alive_connections_do_not_hold_up_the_end() -> None:
    with fake_server() as server, httpx.Client() as client, socket.create_connection(("127.0.0.1", server.port)):
        assert client.get(server.url + "/health").status_code == 200
        began_s = time.monotonic()
        server.signal()
        assert server.wait() == 0
        assert time.monotonic() - began_s < 5


def test_console_lines_while_busy_and_none_when_idle() -> None:
    with fake_server(step_s=0.02, config={"port": 0, "log_interval": 0.1}) as server:
        time.sleep(0.4)
        payloads = list(stream(server, {"prompt": "x" * 40, "max_tokens": 24}))
        assert payloads[-1] == "[DONE]"
        server.signal()
        assert server.wait() == 0
        busy = [line for line in server.lines if "tokens/s" in line]
        assert any("running 1, waiting 0, KV usage" in line and "prefix hits" in line for line in busy), server.output
        assert len(busy) <= 8


def test_importing_the_room_loads_no_torch() -> None:
    import subprocess

    code = "import sys, ziggurat.server.run, ziggurat.server.engine_service; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
