# SPDX-License-Identifier: Apache-2.0
"""``ps``: what is taken from a server's memory map, and how people read it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.fake_service import FakeService
from ziggurat.cli import ps
from ziggurat.cli.main import main

URL = "http://127.0.0.1:8000"


def report(**more: Any) -> dict[str, Any]:
    """A map with two sequences: one runs and shares a block of the two that it holds, one waits."""
    memory = asyncio.run(FakeService().memory())
    running = {
        "request_id": "cmpl-1",
        "state": "running",
        "since_s": memory["now_s"] - 75,
        "num_prompt_tokens": 1234,
        "num_output_tokens": 5,
        "num_cached_tokens": 16,
        "num_blocks": [2],
        "num_own_blocks": [1],
        "own_bytes": 16384,
    }
    waiting = {
        **running,
        "request_id": "cmpl-2",
        "state": "waiting",
        "num_blocks": [0],
        "num_own_blocks": [0],
        "own_bytes": 0,
    }
    about = {
        "model": "tiny",
        "phase": "ready",
        "uptime_s": 3700.0,
        "max_model_len": 4096,
        "requests": {"num_running": 1, "num_waiting": 1, "prompt_tokens": 5000, "generation_tokens": 70},
        "kv_bytes": {"total_bytes": 4 << 20, "used_bytes": 32768, "cached_bytes": 0, "free_bytes": (4 << 20) - 32768},
    }
    return {**memory, "sequences": [running, waiting], **about, **more}


class Server:
    """Stands for `Connection`; gives one report after the other, the last one for ever."""

    def __init__(self, *reports: Any) -> None:
        self.reports = list(reports)
        self.name = URL

    def get(self, path: str) -> Any:
        assert path == "/memory"
        return self.reports.pop(0) if len(self.reports) > 1 else self.reports[0]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def install(*reports: Any) -> None:
        server = Server(*reports)
        monkeypatch.setattr(ps, "Connection", lambda url: server)

    return install


def test_one_look_for_people(serve: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    serve(report())
    assert main(["ps"]) == 0
    text = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert f"server {URL}, ready, up 1 h 1 min" in lines
    assert "model tiny, context 4,096 tokens" in lines
    assert "requests 1 running, 1 waiting" in lines
    assert "cmpl-1 running 1 min 15 s 1,234 16 5 16.0 KiB 16.0 KiB" in lines
    assert "cmpl-2 waiting 1 min 15 s 1,234 16 5 0 B 0 B" in lines
    assert any(line.startswith("weights 15.0 MiB model: packed weights") for line in lines)
    assert any(line.startswith("budget 64.0 MiB") for line in lines)
    assert "KV 32.0 KiB used, 0 B reusable, 3.97 MiB free" in lines
    assert "process 27.0 MiB above its baseline, of a budget of 64.0 MiB" in lines


def test_one_look_for_programs(serve: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    serve(report())
    assert main(["ps", "--format", "json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["budget_bytes"] == 64 << 20
    assert data["sequences"][0] == {
        "request_id": "cmpl-1",
        "state": "running",
        "age_s": 75.0,
        "num_prompt_tokens": 1234,
        "num_output_tokens": 5,
        "num_cached_tokens": 16,
        "own_bytes": 16384,
        "shared_bytes": 16384,
    }


def test_no_requests(serve: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    serve(report(sequences=[]))
    assert main(["ps"]) == 0
    assert "\nno requests\n" in capsys.readouterr().out


def test_watching_tells_rates_and_ends_with_ctrl_c(
    serve: Callable[..., None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    later = report(uptime_s=3702.0)
    later["requests"] = {**later["requests"], "prompt_tokens": 5100, "generation_tokens": 75}
    serve(report(), later)
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(ps._watch, "__kwdefaults__", {"sleep": sleep})
    assert main(["ps", "--watch", "2", "--format", "json"]) == 0
    first, second = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert first["tokens_per_s"] is None
    assert second["tokens_per_s"] == {"prompt_tokens": 50.0, "generation_tokens": 2.5}
    assert waits == [2, 2]
    assert "50.0 of prompts, 2.5 generated per second" in ps.as_text(second)


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        (["--watch", "0"], 1, "watch must be at least 0.1"),
        (["--watch", "1", "--output", "x.json"], 2, "redirect standard output"),
        (["model"], 2, "unexpected argument 'model'"),
    ],
)
def test_mistakes(
    argv: list[str], code: int, says: str, serve: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    serve(report())
    assert main(["ps", *argv]) == code
    assert says in capsys.readouterr().err


def test_somebody_else_answers(serve: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    serve({"hello": 1})
    assert main(["ps"]) == 1
    assert "not a memory map of Ziggurat" in capsys.readouterr().err


def test_nobody_answers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ps", "--url", "http://127.0.0.1:1"]) == 1
    assert "no server answers at http://127.0.0.1:1" in capsys.readouterr().err
    assert main(["ps", "--url", "unix:/no/such/socket"]) == 1
    assert "no server answers at unix:/no/such/socket" in capsys.readouterr().err
    assert main(["ps", "--url", "127.0.0.1:1"]) == 1
    assert "must begin with http://, https:// or unix:" in capsys.readouterr().err
