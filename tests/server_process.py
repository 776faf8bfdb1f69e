# SPDX-License-Identifier: Apache-2.0
"""A server with the fake service as a process of its own (``python -m tests.server_process JSON``), and its handle for tests."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

ROOT = Path(__file__).parents[1]
DEADLINE_S = 60.0


class ServerProcess:
    """Starts a server process and ends it with the ``with`` block.

    Args:
        command: what to run; it must print its address as ``run_server`` does.
    """

    def __init__(self, command: list[str], *, wait_ready: bool = True) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.lines: list[str] = []
        try:
            address = re.search(r"(http://|unix:)[^\s\"]+", self.read_until("listens on"))
            assert address is not None
            self.url = address.group()
            self.port = int(self.url.rsplit(":", 1)[1]) if self.url.startswith("http") else 0
            if wait_ready:
                self.read_until("ready in")
        except BaseException:
            self.process.kill()
            raise

    def read_until(self, text: str) -> str:
        """The next line of output that contains ``text``."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if text in line:
                return line
        raise AssertionError(f"no {text!r} in the output, exit code {self.process.wait()}: {''.join(self.lines)}")

    def signal(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def wait(self, timeout_s: float = DEADLINE_S) -> int:
        """The exit code; the rest of the output is in ``lines`` then."""
        rest, _ = self.process.communicate(timeout=timeout_s)
        self.lines.extend(rest.splitlines(keepends=True))
        return self.process.returncode

    @property
    def output(self) -> str:
        return "".join(self.lines)

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, timeout=DEADLINE_S)

    def wait_for(self, what: Any, timeout_s: float = 20.0) -> dict[str, Any]:
        """Poll ``GET /memory`` until ``what(map)`` is true."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            memory = self.get("/memory").json()
            if what(memory):
                return memory
            assert time.monotonic() < deadline_s, f"still not so after {timeout_s} s: {memory}"
            time.sleep(0.02)

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


def fake_server(*, wait_ready: bool = True, **settings: Any) -> ServerProcess:
    """A process with the fake service.

    Settings: ``config`` (of ServerConfig), ``load_s``, ``load_error``, ``fail_after``; the rest is FakeService's.
    """
    settings.setdefault("config", {}).setdefault("port", 0)
    command = [sys.executable, "-m", "tests.server_process", json.dumps(settings)]
    return ServerProcess(command, wait_ready=wait_ready)


def engine_server(model: Path | str, *, config: dict[str, Any] | None = None, **settings: Any) -> ServerProcess:
    """A process with the real engine. Settings are EngineConfig's."""
    both = {"config": {"port": 0, **(config or {})}, "engine": {"model": str(model), **settings}}
    return ServerProcess([sys.executable, "-m", "tests.server_process", json.dumps(both)])


def main(settings: dict[str, Any]) -> int:
    """The process: exactly what a command line does around ``run_server``."""
    from ziggurat.errors import ZigguratError
    from ziggurat.server.config import ServerConfig
    from ziggurat.server.console import log_to_stderr
    from ziggurat.server.run import run_server

    given = settings.pop("config")
    config = ServerConfig(**given | {name: Path(given[name]) for name in ("uds", "api_key_file") if name in given})
    log_to_stderr(config.log_format, config.log_level)
    try:
        if "engine" in settings:
            return run_server(config, lambda: load_engine(settings["engine"]))
        load, attach = fake_parts(settings)
        return run_server(config, load, attach=attach)
    except ZigguratError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def load_engine(settings: dict[str, Any]) -> Any:
    from ziggurat.engine.config import EngineConfig
    from ziggurat.engine.engine import Engine

    return Engine.load(EngineConfig(**settings))


def fake_parts(settings: dict[str, Any]) -> tuple[Any, Any]:
    """``load`` and ``attach`` of a server with the fake service."""
    from tests.fake_service import FakeService
    from ziggurat.errors import ModelError

    load_s, load_error = settings.pop("load_s", 0.0), settings.pop("load_error", None)
    fail_after = settings.pop("fail_after", None)

    def load() -> None:
        time.sleep(load_s)
        if load_error:
            raise ModelError(load_error)

    def attach(_: None) -> FakeService:
        service = FakeService(**settings)
        service.fail_after = fail_after
        return service

    return load, attach


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
