# SPDX-License-Identifier: Apache-2.0
"""The quick start of README.md as it is printed there: its blocks are cut out and run, with nothing changed but the port."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.server_process import ROOT, ServerProcess
from ziggurat.server.config import DEFAULT_PORT

ADDRESS = f"127.0.0.1:{DEFAULT_PORT}"
TIMEOUT_S = 180


def blocks() -> list[tuple[str, str]]:
    """Language and text of the fenced blocks above "Other models"."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").split("\n## Other models")[0]
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def the_block(start: str, language: str = "") -> str:
    """The only block that begins so."""
    (found,) = [text for each, text in blocks() if each == language and text.startswith(start)]
    return found


SERVE = the_block("$ make serve")


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    """What ``make serve`` runs, with the flags of the README and a port of its own."""
    flags = re.search(r'ARGS="([^"]*)"', SERVE)
    assert flags is not None
    with ServerProcess([sys.executable, "-m", "ziggurat", "serve", *flags.group(1).split(), "--port", "0"]) as process:
        yield process


def run(command: list[str], folder: Path) -> str:
    """What it prints. It must end well, outside of the repository."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_the_makefile_has_the_commands() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = [name for _, text in blocks() for name in re.findall(r"\bmake ([a-z-]+)", text)]
    assert named and set(named) <= set(targets)
    assert re.search(
        r"^serve:.*\n\t\$\(VENV\)/bin/ziggurat serve \$\(ARGS\)$", (ROOT / "Makefile").read_text(), re.MULTILINE
    )


def test_the_memory_table_has_the_rows_of_the_readme(server: ServerProcess) -> None:
    printed = SERVE.partition("\nmemory ")[2].splitlines()[1:-1]
    shown = {tuple(re.split(r"\s{2,}", line)[0::2]) for line in printed}
    real = {tuple(re.split(r"\s{2,}", line.strip())[0::2]) for line in server.lines}
    wrong = {row for row in shown if not any(same_row(row, each) for each in real)}
    assert len(shown) == 10 and not wrong, server.output


def same_row(row: tuple[str, ...], other: tuple[str, ...]) -> bool:
    """The same words; numbers depend on the machine."""
    return [re.sub(r"\d+", "0", text) for text in row] == [re.sub(r"\d+", "0", text) for text in other]


def test_curl(server: ServerProcess, tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    command = the_block("curl ")
    assert ADDRESS in command
    answer = json.loads(run(["sh", "-ec", command.replace(ADDRESS, f"127.0.0.1:{server.port}")], tmp_path))
    assert answer["object"] == "chat.completion" and answer["choices"][0]["message"]["content"]


def test_the_official_client(server: ServerProcess, tmp_path: Path) -> None:
    if importlib.util.find_spec("openai") is None:
        pytest.skip("openai is not installed: pip install -e '.[test]'")
    program = the_block("from openai", "python")
    assert ADDRESS in program
    assert run([sys.executable, "-c", program.replace(ADDRESS, f"127.0.0.1:{server.port}")], tmp_path).strip()


def test_the_page_is_where_the_readme_says(server: ServerProcess) -> None:
    (path,) = re.findall(rf"<http://{re.escape(ADDRESS)}(/[^>]*)>", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert "<title>Ziggurat</title>" in httpx.get(server.url + path, timeout=30).text


def test_without_a_server(tmp_path: Path) -> None:
    program = the_block("from ziggurat", "python")
    printed = run([sys.executable, "-c", program], tmp_path)
    prompts = re.search(r"llm\.generate\(\[(.*?)\]", program)
    assert prompts is not None
    wanted = re.findall(r'"(.*?)"', prompts.group(1))
    assert wanted and all(prompt in printed for prompt in wanted), printed
