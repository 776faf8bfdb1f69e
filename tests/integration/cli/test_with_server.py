# SPDX-License-Identifier: Apache-2.0
"""Verbs against a server process: what `ps` sees while requests run, keys, and a Unix socket."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import httpx
import pytest

from tests.server_process import fake_server
from ziggurat.cli.main import main

KEY = "sk-test"


def test_ps_sees_requests_while_they_run(capsys: pytest.CaptureFixture[str]) -> None:
    with fake_server(step_s=0.05, config={"api_key": [KEY]}) as server:
        body = {"prompt": "x" * 40, "max_tokens": 60, "request_id": "mine", "ignore_eos": True}
        headers = {"Authorization": f"Bearer {KEY}"}
        url = server.url + "/v1/completions"
        thread = threading.Thread(target=lambda: httpx.post(url, json=body, headers=headers, timeout=60))
        thread.start()
        server.wait_for(lambda memory: memory["sequences"])
        assert main(["ps", "--url", server.url, "--format", "json"]) == 0
        busy = json.loads(capsys.readouterr().out)
        thread.join()
        assert (busy["requests"]["num_running"], busy["sequences"][0]["request_id"]) == (1, "cmpl-mine")
        assert busy["sequences"][0]["own_bytes"] > 0
        assert main(["ps", "--url", server.url + "/v1"]) == 0
        assert "no requests" in capsys.readouterr().out


def test_keys_of_the_command_line_and_of_the_environment(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with fake_server(config={"api_key": [KEY]}) as server:
        argv = ["complete", "hi", "--url", server.url, "--max-tokens", "2", "--format", "json"]
        assert main(argv) == 1
        assert "needs an API key" in capsys.readouterr().err
        assert main([*argv, "--api-key", "sk-other"]) == 1
        assert "give it with --api-key" in capsys.readouterr().err
        assert main([*argv, "--api-key", KEY]) == 0
        monkeypatch.setenv("ZIGGURAT_API_KEY", KEY)
        monkeypatch.setenv("ZIGGURAT_MEMORY", "1GiB")
        assert main(argv) == 0
        assert capsys.readouterr().out.count('"finish_reason": "length"') == 2


def test_a_unix_socket_is_an_address(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with fake_server(config={"uds": str(tmp_path / "z")}) as server:
        assert main(["ps", "--url", server.url, "--format", "json"]) == 0
        assert json.loads(capsys.readouterr().out)["url"] == server.url
        assert main(["complete", "hi", "--url", server.url, "--max-tokens", "2"]) == 0
        assert len(capsys.readouterr().out.split()) == 2
