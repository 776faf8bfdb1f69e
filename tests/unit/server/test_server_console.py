# SPDX-License-Identifier: Apache-2.0
"""The log of a server that is a program of its own: text and JSON lines, levels, ids, and a line per request without what it says."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from tests.fake_service import FakeService
from tests.server_client import CHAT, HELLO, talk
from ziggurat.server.config import ServerConfig
from ziggurat.server.console import LOGGERS, REQUEST_ID, announcer, log_event, log_to_stderr

SECRET = "my mother's maiden name"


@pytest.fixture(autouse=True)
def _loggers_as_they_were() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [(logger.level, logger.propagate, list(logger.handlers)) for logger in loggers]
    yield
    for logger, (level, propagate, handlers) in zip(loggers, before, strict=True):
        logger.level, logger.propagate, logger.handlers[:] = level, propagate, handlers


def test_lines_go_to_stderr_once(capsys: pytest.CaptureFixture[str]) -> None:
    log_to_stderr()
    log_to_stderr()
    logging.getLogger("ziggurat.server").info("busy")
    logging.getLogger("ziggurat.server").debug("detail")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("busy") == 1
    assert err.endswith(" busy\n")


def test_levels(capsys: pytest.CaptureFixture[str]) -> None:
    log_to_stderr("text", "warning")
    logging.getLogger("ziggurat.server").info("busy")
    logging.getLogger("ziggurat.server").warning("odd")
    assert capsys.readouterr().err.endswith(" WARNING: odd\n")
    log_to_stderr("json", "debug")
    logging.getLogger("ziggurat.engine").debug("detail")
    assert json.loads(capsys.readouterr().err)["level"] == "debug"


def test_json_lines(capsys: pytest.CaptureFixture[str]) -> None:
    log_to_stderr("json")
    token = REQUEST_ID.set("id-1")
    log_event("stats", "two\nlines", {"num_running": 1})
    REQUEST_ID.reset(token)
    try:
        raise ValueError("what happened")
    except ValueError:
        logging.getLogger("ziggurat.server").exception("unexpected %s", "error")
    first, second = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    moment = datetime.fromisoformat(first.pop("ts"))
    assert moment.tzinfo is not None
    assert abs((datetime.now(UTC) - moment).total_seconds()) < 60
    assert first == {
        "level": "info",
        "event": "stats",
        "message": "two\nlines",
        "request_id": "id-1",
        "num_running": 1,
    }
    assert (second["level"], second["event"], second["message"]) == ("error", "log", "unexpected error")
    assert "ValueError: what happened" in second["traceback"]
    assert "request_id" not in second


def test_the_lines_of_a_servers_life(capsys: pytest.CaptureFixture[str]) -> None:
    log_to_stderr("json")
    announcer("text")("ready", "ready in 1 s", {"duration_s": 1})
    announcer("json")("ready", "ready in 1 s", {"duration_s": 1})
    out, err = capsys.readouterr()
    assert out == "ready in 1 s\n"
    assert json.loads(err)["duration_s"] == 1


def requests_with(config: ServerConfig, log_format: str, capsys: pytest.CaptureFixture[str]) -> str:
    log_to_stderr(log_format)

    async def work(client: httpx.AsyncClient, _: FakeService) -> None:
        body: dict[str, Any] = {"messages": [{"role": "user", "content": SECRET}], "max_tokens": 2, "stream": True}
        await client.post(CHAT + "?note=hidden", json=body, headers={"X-Request-Id": "id-7"})
        await client.get("/no%0Dsuch%0aroute")
        await client.post(CHAT, json={"messages": HELLO, SECRET: 1})

    talk(work, config)
    return capsys.readouterr().err


def test_requests_are_not_logged_unless_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert requests_with(ServerConfig(), "text", capsys) == ""


def test_a_line_per_request_without_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    err = requests_with(ServerConfig(log_requests=True), "json", capsys)
    lines = [json.loads(line) for line in err.splitlines()]
    assert [(line["event"], line["method"], line["path"], line["status"]) for line in lines] == [
        ("request", "POST", CHAT, 200),
        ("request", "GET", "/no\\rsuch\\nroute", 404),
        ("request", "POST", CHAT, 400),
    ]
    assert lines[0]["request_id"] == "id-7"
    assert 0 <= lines[0]["duration_s"] < 60
    assert SECRET not in err
    assert "hidden" not in err


def test_text_lines_of_requests_cannot_be_forged(capsys: pytest.CaptureFixture[str]) -> None:
    lines = requests_with(ServerConfig(log_requests=True), "text", capsys).splitlines()
    assert len(lines) == 3
    assert f"POST {CHAT} 200 in " in lines[0]
    assert lines[0].endswith("[request id-7]")


@pytest.mark.parametrize("settings", [{"log_format": "xml"}, {"log_level": "loud"}])
def test_names_that_do_not_exist(settings: dict[str, Any]) -> None:
    with pytest.raises(Exception, match=f"{next(iter(settings))} must be one of"):
        ServerConfig(**settings)
