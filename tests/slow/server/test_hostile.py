# SPDX-License-Identifier: Apache-2.0
"""Five hundred hostile requests: each gets a 4xx with OpenAI's body or a closed connection, and clients that behave notice nothing.

What it costs those clients is measured by ``benchmarks/hostile.py``; here is only what has to be right on any machine.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks.attack import Attack, Report, answers_in, faults_of, run_attacks
from benchmarks.hostile_requests import COUNT, hostile_requests, post
from tests.server_process import ServerProcess, engine_server

NUM_STREAMS = 4
TOKENS = 200
BUDGET_BYTES = 256 << 20
DEADLINE_S = 120.0


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    if importlib.util.find_spec("schemathesis") is None:
        pytest.skip("schemathesis is not installed: pip install -e '.[test]'")
    settings: dict[str, Any] = {"memory": "256MiB", "max_num_seqs": 8, "threads": 1}
    with engine_server("embedded", config={"body_timeout": 5.0}, **settings) as process:
        yield process


async def stream(port: int, seed: int) -> str:
    """The text of one answer; it must be whole."""
    fields = {"prompt": "Once", "max_tokens": TOKENS, "ignore_eos": True, "stream": True, "seed": seed}
    fields["stream_options"] = {"include_usage": True}
    request = post("stream", "/v1/completions", json.dumps(fields).encode())
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"".join(request.parts))
    lines = [line async for line in reader if line.startswith(b"data: ")]
    writer.transport.abort()
    assert lines[-1] == b"data: [DONE]\n", lines[-1:]
    chunks = [json.loads(line.removeprefix(b"data: ")) for line in lines[:-1]]
    assert chunks[-1]["usage"]["completion_tokens"] == TOKENS
    return "".join(chunk["choices"][0]["text"] for chunk in chunks if chunk["choices"])


async def attack_beside_streams(port: int, attacks: list[Attack]) -> tuple[Report, list[set[str]]]:
    """The report, and the different texts that each well-behaved client got while the attack ran."""
    texts: list[set[str]] = [set() for _ in range(NUM_STREAMS)]
    running = asyncio.create_task(run_attacks(port, attacks, deadline_s=DEADLINE_S))

    async def client(seed: int) -> None:
        while not running.done():
            texts[seed].add(await stream(port, seed))

    await asyncio.gather(running, *(client(seed) for seed in range(NUM_STREAMS)))
    return running.result(), texts


def test_five_hundred_hostile_requests(server: ServerProcess) -> None:
    attacks = hostile_requests(server.get("/openapi.json").json())
    assert len(attacks) == COUNT
    alone = [asyncio.run(stream(server.port, seed)) for seed in range(NUM_STREAMS)]
    began_s = time.monotonic()
    report, texts = asyncio.run(attack_beside_streams(server.port, attacks))
    print(f"{time.monotonic() - began_s:.0f} s, slowest {report.slowest_s}")
    print({kind: dict(counter) for kind, counter in sorted(report.statuses.items())})
    assert not report.faults, "\n".join(report.faults)
    assert report.num_sent == COUNT
    assert texts == [{text} for text in alone]
    memory = server.wait_for(lambda memory: memory["requests"]["num_open"] == 0, timeout_s=60)
    assert memory["sequences"] == []
    # What grammars and parsed bodies leave with the allocators is drift: the engine takes it out of the KV pool, so that the budget holds.
    owners = {row["owner"].split("/")[0] for row in memory["ledger"] if row["depth"]}
    assert owners <= {"drift", "shared and cached"}, owners
    assert memory["process"]["above_baseline_bytes"] <= BUDGET_BYTES
    print(f"drift {memory['drift']}")
    assert asyncio.run(stream(server.port, 0)) == alone[0]
    server.signal()
    assert server.wait() == 0, server.output[-2000:]
    assert "Traceback" not in server.output


@pytest.mark.parametrize(
    ("received", "fault"),
    [
        (b"HTTP/1.1 500 X\r\ncontent-length: 2\r\n\r\n{}", "500"),
        (b"HTTP/1.1 501 X\r\ncontent-length: 2\r\n\r\n{}", "501"),
        (b"HTTP/1.1 200 X\r\ncontent-length: 2\r\n\r\n{}", "200"),
        (b"HTTP/1.1 400 X\r\ncontent-length: 2\r\n\r\n{}", "headers"),
        (b"HTTP/1.1 400 X\r\nx-request-id: 1\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}", "body"),
    ],
)
def test_the_judge_sees_faults(received: bytes, fault: str) -> None:
    assert len(list(answers_in(received))) == 1
    (found,) = faults_of(received, Attack(kind="x", parts=(b"",)))
    assert fault in found
