# SPDX-License-Identifier: Apache-2.0
"""The near end of a peer's process."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from typing import Any

from ziggurat.catalog.peers.registry import Job, Peer

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
DEFAULT_TIMEOUT_S = 900.0


class PeerFailed(Exception):
    """A peer refused, raised, died or took too long; the text says which."""


def child_environment(threads: int) -> dict[str, str]:
    """This process's, with every library held to ``threads`` and idle threads asleep: the next process wants the cores."""
    fixed = dict.fromkeys(_THREAD_VARIABLES, str(threads)) | {"OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}
    return os.environ | fixed


class PeerProcess:
    """One peer in a process of its own. Use it as a context manager, or call `close`.

    Args:
        timeout_s: a request that takes longer ends the process.
    """

    def __init__(self, peer: type[Peer], job: Job, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        self.engine, self.format = peer.engine, peer.format
        self._spec, self._job, self._timeout_s = f"{peer.__module__}:{peer.__qualname__}", job, timeout_s
        self._is_late = False
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115  (closed by `close`)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "ziggurat.catalog.peers.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=child_environment(job.threads),
        )

    def open(self) -> float:
        """Load the model; seconds.

        Raises:
            PeerFailed: see there; so for the other methods.
        """
        job = dataclasses.asdict(self._job) | {"folder": str(self._job.folder)}
        return float(self._ask(op="open", peer=self._spec, job=job)["seconds"])

    def generate(self, prompts: Sequence[Sequence[int]], num_tokens: int) -> float:
        """Seconds that the peer took for it, measured by its process."""
        return float(self._ask(op="generate", prompts=prompts, num_tokens=num_tokens)["seconds"])

    def peak_rss_bytes(self) -> int:
        """The most memory its process had."""
        return int(self._ask(op="peak_rss")["peak_rss_bytes"])

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            try:
                pipe.close()
            except BrokenPipeError:
                # A request that the process did not live to read was still buffered; the row says already that it died.
                continue
        self._log.close()

    def __enter__(self) -> PeerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, **request: Any) -> dict[str, Any]:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        timer = threading.Timer(self._timeout_s, self._end_late)
        timer.start()
        try:
            stdin.write(json.dumps(request) + "\n")
            stdin.flush()
            line = stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            timer.cancel()
        if not line:
            raise PeerFailed(self._obituary())
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise PeerFailed(answer["error"])
        return answer

    def _end_late(self) -> None:
        self._is_late = True
        self._process.kill()

    def _obituary(self) -> str:
        code = self._process.wait()
        if self._is_late:
            return f"no answer within {self._timeout_s:g} s"
        self._log.seek(0)
        words = self._log.read().strip().splitlines()
        return f"the process died with code {code}" + (f": {words[-1].strip()}" if words else "")
