# SPDX-License-Identifier: Apache-2.0
"""The process of one peer: JSON lines in on standard input, JSON lines out on what was standard output.

Requests: ``{"op": "open", "peer": "module:Class", "job": {..}}``, ``{"op": "generate", "prompts": [[..]], "num_tokens": n}``,
``{"op": "peak_rss"}``. Answers: ``{"seconds": s}``, ``{"peak_rss_bytes": n}`` or ``{"error": text}``. The end of input ends it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any, TextIO

from ziggurat.catalog.peers.registry import Job, Peer


def peak_rss_bytes() -> int:
    """The high-water mark of this process's memory. Not ``ru_maxrss``, which remembers the process that started this one."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


class Child:
    """Answers requests, one at a time."""

    def __init__(self) -> None:
        self._peer: Peer | None = None

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to one request."""
        start_s = time.perf_counter()
        if request["op"] == "open":
            module, _, name = request["peer"].partition(":")
            peer: Peer = getattr(import_module(module), name)()
            peer.open(Job(**{**request["job"], "folder": Path(request["job"]["folder"])}))
            self._peer = peer
        elif request["op"] == "generate":
            self._generate(request["prompts"], request["num_tokens"])
        else:
            return {"peak_rss_bytes": peak_rss_bytes()}
        return {"seconds": time.perf_counter() - start_s}

    def _generate(self, prompts: list[list[int]], num_tokens: int) -> None:
        assert self._peer is not None, "generate before open"
        outputs = self._peer.generate(prompts, num_tokens)
        lengths = [len(output) for output in outputs]
        if lengths != [num_tokens] * len(prompts):
            raise RuntimeError(f"asked for {len(prompts)} x {num_tokens} tokens, got {lengths}")


def serve(requests: TextIO, answers: TextIO) -> None:
    """Answer until the input ends."""
    child = Child()
    for line in requests:
        try:
            answer = child.answer(json.loads(line))
        except Exception as error:  # noqa: BLE001  (whatever a foreign engine raises is the content of its row)
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def main() -> None:
    """Engines print what they like to standard output; the answers get a descriptor of their own."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    serve(sys.stdin, answers)


if __name__ == "__main__":
    main()
