# SPDX-License-Identifier: Apache-2.0
"""What five hundred hostile requests cost the clients that behave: p99 time between two tokens of four streams, with and without them.

    python -m benchmarks.hostile            # five minutes; needs schemathesis

The server, the streams and the attack are a process each, on loopback. The attack runs at the lowest priority: hostile clients bring
machines of their own, so what is measured is the work they cause in the server and not their own. Quiet and attacked phases take turns,
so that a change of the machine's load falls on both. What was answered wrongly is in the report too, and the exit code is 1 then.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import multiprocessing
import os
import re
import statistics
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.attack import Attack, Report, run_attacks
from benchmarks.hostile_requests import hostile_requests, post
from benchmarks.report import publish

NUM_STREAMS = 4
NUM_TURNS = 10
PHASE_S = 12.0
TOKENS = 400
DEADLINE_S = 60.0
FLAGS = ("--memory", "256MiB", "--max-num-seqs", "8", "--threads", "1", "--port", "0", "--body-timeout", "5")


async def stream_gaps(port: int, seed: int, until_s: float) -> list[float]:
    """Seconds between the tokens of one answer after the other, until a time of ``time.monotonic``."""
    gaps: list[float] = []
    fields = {"prompt": f"Number {seed}: once", "max_tokens": TOKENS, "ignore_eos": True, "stream": True, "seed": seed}
    request = post("stream", "/v1/completions", json.dumps(fields).encode())
    while time.monotonic() < until_s:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"".join(request.parts))
        times: list[float] = []
        while time.monotonic() < until_s and (line := await reader.readline()):
            if line.startswith(b"data: {"):
                times.append(time.monotonic())
        writer.transport.abort()
        gaps += [later - earlier for earlier, later in itertools.pairwise(times)]
    return gaps


def streams(port: int, pipe: Connection) -> None:
    """The process of the clients that behave: a phase per number of seconds that comes through the pipe."""

    async def phase(duration_s: float) -> list[float]:
        until_s = time.monotonic() + duration_s
        gaps = await asyncio.gather(*(stream_gaps(port, seed, until_s) for seed in range(NUM_STREAMS)))
        return list(itertools.chain(*gaps))

    while duration_s := pipe.recv():
        pipe.send(asyncio.run(phase(duration_s)))


def p99(gaps: Sequence[float]) -> float:
    """The 99th percentile."""
    return statistics.quantiles(gaps, n=100)[98]


def measure(
    port: int, attacks: Sequence[Attack], turns: int
) -> tuple[list[list[float]], list[list[float]], list[Report]]:
    """Gaps of each quiet phase, gaps of each attacked phase, and how the attacks were answered."""
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    clients = multiprocessing.get_context("spawn").Process(target=streams, args=(port, theirs), daemon=True)
    clients.start()
    os.nice(19)  # from here on this process is the attack
    quiet, attacked, reports = [], [], []
    ours.send(3.0)  # caches and the process itself warm up
    ours.recv()
    for turn in range(turns):
        ours.send(PHASE_S)
        quiet.append(ours.recv())
        share = attacks[turn::turns]
        ours.send(PHASE_S)
        began_s = time.monotonic()
        reports.append(asyncio.run(run_attacks(port, share, deadline_s=DEADLINE_S, rate_hz=len(share) / PHASE_S)))
        attacked.append(ours.recv())
        print(f"turn {turn + 1}: {len(share)} requests in {time.monotonic() - began_s:.1f} s", file=sys.stderr)
    ours.send(0)
    clients.join()
    return quiet, attacked, reports


def start_server(model: str) -> tuple[subprocess.Popen[str], int]:
    """A server of its own process, and its port."""
    command = [sys.executable, "-m", "ziggurat", "serve", model, *FLAGS]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    port = 0
    assert server.stdout is not None
    for line in server.stdout:
        found = re.search(r"listens on http://[^:]+:(\d+)", line)
        port = int(found.group(1)) if found else port
        if line.startswith("ready in"):
            return server, port
    raise SystemExit(f"the server ended with exit code {server.wait()} before it was ready")


def summary(quiet: list[list[float]], attacked: list[list[float]]) -> dict[str, Any]:
    """Both p99s over all phases, their ratio, and the ratios turn by turn."""
    before, during = list(itertools.chain(*quiet)), list(itertools.chain(*attacked))
    return {
        "quiet_p99_ms": 1000 * p99(before),
        "attacked_p99_ms": 1000 * p99(during),
        "p99_ratio": p99(during) / p99(before),
        "p99_ratio_by_turn": [p99(b) / p99(a) for a, b in zip(quiet, attacked, strict=True)],
        "quiet_median_ms": 1000 * statistics.median(before),
        "attacked_median_ms": 1000 * statistics.median(during),
        "quiet_max_ms": 1000 * max(before),
        "attacked_max_ms": 1000 * max(during),
        "num_gaps": [len(before), len(during)],
    }


def main() -> int:
    """Print the report, or write it to a file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--turns", type=int, default=NUM_TURNS)
    parser.add_argument("--only", default="", help="attacks whose kind begins so; for finding out which of them costs")
    parser.add_argument("--output", type=Path, default=None)
    asked = parser.parse_args()
    server, port = start_server(asked.model)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/openapi.json") as answer:
            attacks = [each for each in hostile_requests(json.load(answer)) if each.kind.startswith(asked.only)]
        quiet, attacked, reports = measure(port, attacks, asked.turns)
    finally:
        server.terminate()
        server.communicate()
    faults = [fault for report in reports for fault in report.faults]
    content = {"model": asked.model, "flags": FLAGS, "streams": NUM_STREAMS, "attacks": len(attacks)}
    counts: dict[str, Counter[int]] = {}
    for report in reports:
        for kind, counter in report.statuses.items():
            counts.setdefault(kind, Counter()).update(counter)
    publish(
        "python -m benchmarks.hostile",
        asked.output,
        **content,
        latency=summary(quiet, attacked),
        statuses=counts,
        faults=faults,
    )
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
