# SPDX-License-Identifier: Apache-2.0
"""A GGUF file behind the server: exported, served, asked over HTTP, and what the log says of decoded weights and of those that stay."""

from __future__ import annotations

import sys
from pathlib import Path

import httpx

from tests.server_process import ServerProcess
from ziggurat.cli.main import main


def test_an_exported_file_is_served(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    assert main(["export", "embedded", "--gguf", str(path), "--type", "q8_0"]) == 0
    command = [sys.executable, "-m", "ziggurat", "serve", str(path), "--port", "0", "--memory", "128MiB"]
    with ServerProcess([*command, "--quantization", "none"]) as server:
        assert any("Q8_0 weights are decoded to bf16 while loading" in line for line in server.lines)
    with ServerProcess([*command, "--served-model-name", "file"]) as server:
        assert not any("decoded" in line for line in server.lines)
        request = {"model": "file", "messages": [{"role": "user", "content": "Hello!"}], "temperature": 0}
        answer = httpx.post(f"{server.url}/v1/chat/completions", json=request, timeout=30).json()
        assert answer["choices"][0]["message"]["content"]
        assert answer["choices"][0]["finish_reason"] == "stop"
        assert answer["usage"]["prompt_tokens"] > 3


def test_a_damaged_file_ends_with_one_line(tmp_path: Path) -> None:
    import subprocess

    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF\x03\x00")
    done = subprocess.run(
        [sys.executable, "-m", "ziggurat", "serve", str(path), "--port", "0"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[3],
    )
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith(f"ziggurat: {path} is truncated")
