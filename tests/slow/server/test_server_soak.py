# SPDX-License-Identifier: Apache-2.0
"""Two thousand clients that behave, leave, or send nonsense, at random; then nothing is held and the server still answers.

Acceptance: every admitted request ends, and all leases return to zero, with disconnects at every state.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.server_process import ServerProcess, engine_server

NUM_CLIENTS = 2000
NUM_AT_ONCE = 12
KINDS = ("whole", "stream", "leave at chunk", "leave in body", "leave after body", "nonsense", "look")


def request_bytes(body: dict[str, Any]) -> tuple[bytes, bytes]:
    raw = json.dumps(body).encode()
    lines = ["POST /v1/completions HTTP/1.1", "Host: x", "Connection: close", "Content-Type: application/json"]
    head = "\r\n".join([*lines, f"Content-Length: {len(raw)}", "", ""])
    return head.encode(), raw


def random_body(rng: random.Random) -> dict[str, Any]:
    start = rng.choice(["", "the same beginning for many, " * 2])
    return {
        "prompt": start + "x" * rng.randint(1, 80),
        "max_tokens": rng.randint(1, 24),
        "n": rng.choice([1, 1, 1, 2, 3]),
        "seed": rng.randint(0, 9),
        "ignore_eos": rng.random() < 0.5,
        "temperature": rng.choice([0, 1]),
    }


async def one_client(port: int, rng: random.Random, kind: str) -> str:
    """What the client saw: a status, or that it left."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        body = random_body(rng)
        if kind == "nonsense":
            body = rng.choice([{"prompt": ""}, {"prompt": "x", "n": 0}, {"prompt": "x" * 5000}, {"promt": "x"}])
        head, raw = request_bytes({**body, "stream": kind in ("stream", "leave at chunk")})
        if kind == "look":
            head, raw = b"GET /memory HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", b""
        writer.write(head + (raw[: rng.randint(0, len(raw) - 1)] if kind == "leave in body" else raw))
        await writer.drain()
        if kind.startswith("leave"):
            await asyncio.sleep(rng.random() * 0.05)
            for _ in range(rng.randint(1, 6) if kind == "leave at chunk" else 0):
                await reader.readline()
            return "left"
        answer = await reader.read()
        if kind == "stream" and b" 200 " in answer.split(b"\r\n")[0]:
            assert b"[DONE]" in answer, answer[-500:]
        return answer.split(b" ")[1].decode()
    finally:
        writer.close()


async def all_clients(port: int, seed: int) -> Counter[tuple[str, str]]:
    gate = asyncio.Semaphore(NUM_AT_ONCE)
    seen: Counter[tuple[str, str]] = Counter()

    async def run(number: int) -> None:
        rng = random.Random(seed * 1_000_000 + number)
        kind = rng.choice(KINDS)
        async with gate:
            seen[kind, await asyncio.wait_for(one_client(port, rng, kind), 120)] += 1

    await asyncio.gather(*(run(number) for number in range(NUM_CLIENTS)))
    return seen


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from tests.checkpoints import write_checkpoint

    folder: Path = write_checkpoint(tmp_path_factory.mktemp("model"), "mistral")
    settings = {"memory": "48MiB", "max_model_len": 200, "max_num_seqs": 6, "max_queued_requests": 8, "threads": 1}
    with engine_server(folder, **settings) as process:
        yield process


def test_two_thousand_random_clients(server: ServerProcess) -> None:
    seen = asyncio.run(all_clients(server.port, seed=1))
    assert sum(seen.values()) == NUM_CLIENTS
    for kind, outcome in seen:
        allowed = {"whole": {"200", "429"}, "stream": {"200", "429"}, "nonsense": {"400", "429"}, "look": {"200"}}
        assert outcome in allowed.get(kind, {"left"}), seen
    memory = server.wait_for(lambda memory: memory["requests"]["num_open"] == 0, timeout_s=60)
    assert memory["sequences"] == []
    assert memory["kv_bytes"]["used_bytes"] == 0
    assert not [row for row in memory["ledger"] if row["depth"] and row["owner"].startswith("cmpl-")]
    assert memory["process"]["above_baseline_bytes"] <= 48 << 20
    server.signal()
    assert server.wait() == 0, server.output[-2000:]
    assert "Traceback" not in server.output
