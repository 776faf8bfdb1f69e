# SPDX-License-Identifier: Apache-2.0
"""Unix sockets, and logs as JSON lines, of a server that runs as a process."""

from __future__ import annotations

import json
import signal
import socket
from pathlib import Path

import httpx
import pytest

from tests.server_process import fake_server
from ziggurat.errors import ConfigError
from ziggurat.server.config import ServerConfig
from ziggurat.server.listen import bind_socket, close_socket


def test_a_unix_socket_serves_and_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "z.sock"
    with fake_server(config={"uds": str(path)}) as server:
        assert server.url == f"unix:{path}"
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://x") as client:
            assert client.get("/health").json()["status"] == "ok"
            answer = client.post("/v1/completions", json={"prompt": "x", "max_tokens": 2})
            assert answer.json()["choices"][0]["finish_reason"] == "length"
        with pytest.raises(ConfigError, match=r"already in use by another process; stop that one"):
            bind_socket(ServerConfig(uds=path))
        server.signal()
        assert server.wait() == 0
    assert not path.exists()


def test_a_signal_while_loading_removes_the_socket(tmp_path: Path) -> None:
    path = tmp_path / "z.sock"
    with fake_server(config={"uds": str(path)}, load_s=60, wait_ready=False) as server:
        assert path.is_socket()
        server.signal()
        assert server.wait() == 128 + signal.SIGTERM
    assert not path.exists()


def test_the_socket_of_a_dead_server_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "z.sock"
    socket.socket(socket.AF_UNIX, socket.SOCK_STREAM).bind(str(path))
    config = ServerConfig(uds=path)
    listener = bind_socket(config)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.connect(str(path))
    close_socket(listener, config)
    assert not path.exists()


def test_paths_that_cannot_be_had(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("keep me", encoding="utf-8")
    for path, says in (
        (tmp_path / "file", "exists and is no socket"),
        (tmp_path / "none" / "z.sock", "No such file"),
        (tmp_path / ("x" * 120), "too long"),
    ):
        with pytest.raises(ConfigError, match=rf"--uds .*{says}"):
            bind_socket(ServerConfig(uds=path))
    assert (tmp_path / "file").read_text(encoding="utf-8") == "keep me"


def test_the_whole_log_is_json_lines(tmp_path: Path) -> None:
    """Every line of a server's output can be read by a program, from the first to the last."""
    config = {"log_format": "json", "log_requests": True, "log_interval": 0.05, "port": 0}
    with fake_server(step_s=0.03, config=config) as server:
        body = {"prompt": "x", "max_tokens": 10}
        headers = {"X-Request-Id": "id-1"}
        assert httpx.post(server.url + "/v1/completions", json=body, headers=headers).status_code == 200
        server.signal()
        assert server.wait() == 0
    lines = [json.loads(line) for line in server.lines]
    assert all({"ts", "level", "event", "message"} <= set(line) for line in lines)
    events = [line["event"] for line in lines]
    assert events[:2] == ["listening", "ready"]
    assert [event for event in events[2:] if event not in ("stats", "request")] == ["draining", "closed"]
    assert lines[0]["url"] == server.url
    (request,) = [line for line in lines if line["event"] == "request"]
    assert (request["request_id"], request["status"]) == ("id-1", 200)
    stats = [line for line in lines if line["event"] == "stats"]
    assert max(line["num_running"] for line in stats) == 1
    assert max(line["generation_tokens_per_s"] for line in stats) > 0
    assert {"num_waiting", "kv_usage_ratio", "prompt_tokens_per_s", "prefix_hit_ratio"} <= set(stats[0])
