# SPDX-License-Identifier: Apache-2.0
"""``complete`` and ``chat`` against a server of the test's own: streams, refusals, and connections that break."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from ziggurat.cli.main import main

USAGE = {"prompt_tokens": 5, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}}


class FakeServer(ThreadingHTTPServer):
    """Says hello; the model's name in the request chooses what goes wrong."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.bodies: list[dict[str, Any]] = []
        self.names = ["good", "breaks", "fails", "refuses", "loads"]
        self.models: Any = None


class Handler(BaseHTTPRequestHandler):
    server: FakeServer

    def log_message(self, format: str, *args: object) -> None: ...

    def do_GET(self) -> None:
        cards = {"data": [{"id": name} for name in self.server.names]}
        self._json(200, cards if self.server.models is None else self.server.models)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(body)
        if body["model"] == "refuses":
            self._json(400, {"error": {"message": "the prompt is too long", "param": "messages"}})
        elif body["model"] == "loads":
            self._json(503, {"error": {"message": "still loading"}})
        else:
            self._stream(body)

    def _json(self, status: int, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _stream(self, body: dict[str, Any]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        is_chat = self.path.endswith("/chat/completions")
        for text in ("hello ", "world"):
            choice = {"delta": {"content": text}} if is_chat else {"text": text}
            self._event({"choices": [{"index": 0, "finish_reason": None, **choice}]})
        if body["model"] == "breaks":
            return
        if body["model"] == "fails":
            self._event({"error": {"message": "a step failed"}})
            return
        self._event({"choices": [{"index": 0, "finish_reason": "length"}]})
        self._event({"choices": [], "usage": USAGE})
        self.wfile.write(b"data: [DONE]\n\n")

    def _event(self, value: Any) -> None:
        self.wfile.write(b": ping\n\ndata: " + json.dumps(value).encode() + b"\n\n")


@pytest.fixture
def server() -> Iterator[FakeServer]:
    server = FakeServer()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def url(server: FakeServer) -> str:
    return f"http://127.0.0.1:{server.server_port}"


@pytest.mark.parametrize("suffix", ["", "/", "/v1"])
def test_complete_streams_from_the_server(server: FakeServer, capsys: pytest.CaptureFixture[str], suffix: str) -> None:
    assert main(["complete", "say hello", "--url", url(server) + suffix, "--max-tokens", "2"]) == 0
    assert capsys.readouterr().out == "hello world\n"
    (body,) = server.bodies
    assert body == {
        "prompt": "say hello",
        "model": "good",
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 2,
    }


def test_a_proxy_is_not_asked_for_this_machine(
    server: FakeServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    assert main(["complete", "say hello", "--url", url(server)]) == 0
    assert capsys.readouterr().out == "hello world\n"


def test_complete_as_json(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["complete", "good", "hi", "--url", url(server), "--format", "json", "--seed", "1"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "model": "good",
        "text": "hello world",
        "finish_reason": "length",
        "num_prompt_tokens": 5,
        "num_cached_tokens": 4,
        "num_output_tokens": 2,
    }


def test_chat_with_the_server(
    server: FakeServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("one\ntwo\n"))
    assert main(["chat", "--url", url(server), "--system", "be kind"]) == 0
    assert capsys.readouterr().out == "hello world\nhello world\n"
    assert [message["content"] for message in server.bodies[1]["messages"]] == ["be kind", "one", "hello world", "two"]


@pytest.mark.parametrize(
    ("model", "code", "says"),
    [
        ("refuses", 1, "the prompt is too long"),
        ("loads", 1, "still loading"),
        ("breaks", 1, "closed the connection in the middle of an answer"),
        ("fails", 3, "a step failed"),
        ("other", 1, "serves good, breaks, fails, refuses, loads, not 'other'"),
    ],
)
def test_what_goes_wrong_on_the_way(
    server: FakeServer, capsys: pytest.CaptureFixture[str], model: str, code: int, says: str
) -> None:
    assert main(["complete", model, "hi", "--url", url(server)]) == code
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("models", "says"), [({"data": []}, "serves no model"), (["x"], "not like an OpenAI-compatible server")]
)
def test_something_else_is_at_that_address(
    server: FakeServer, capsys: pytest.CaptureFixture[str], models: Any, says: str
) -> None:
    server.models = models
    assert main(["complete", "hi", "--url", url(server)]) == 1
    assert says in capsys.readouterr().err


def test_nobody_is_at_that_address(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["complete", "hi", "--url", "http://127.0.0.1:1"]) == 1
    assert "no server answers at http://127.0.0.1:1" in capsys.readouterr().err
