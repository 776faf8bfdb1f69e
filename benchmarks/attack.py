# SPDX-License-Identifier: Apache-2.0
"""Sends hostile requests to a server over raw sockets, and says what is wrong with how it answered.

A good answer is a 4xx with OpenAI's error body, a 501 that names a feature which is not built, or a closed connection. Where a request is
odd but allowed, it is a 2xx as well. A connection that is still open at the deadline hangs.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

NUM_AT_ONCE = 12
ERROR_KEYS = {"message", "type", "param", "code"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """One hostile connection.

    Attributes:
        kind: for counting.
        parts: what is sent, in this order; a part that comes often is one object.
        pause_s: between two parts.
        end: after the last part: wait for the answer, say that nothing more comes, or reset the connection.
        may_pass: the request may be allowed, so that 2xx is a good answer too.
    """

    kind: str
    parts: tuple[bytes, ...]
    pause_s: float = 0.0
    end: Literal["wait", "half-close", "reset"] = "wait"
    may_pass: bool = False


@dataclass(slots=True)
class Report:
    """What came of an attack: statuses by kind (0: closed without an answer), and a line for everything that is wrong."""

    statuses: dict[str, Counter[int]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    slowest_s: dict[str, float] = field(default_factory=dict)

    @property
    def num_sent(self) -> int:
        """Connections, each counted by its last status."""
        return sum(counter.total() for counter in self.statuses.values())


async def run_attacks(port: int, attacks: Sequence[Attack], *, deadline_s: float, rate_hz: float = 0.0) -> Report:
    """Run all of them on 127.0.0.1, `NUM_AT_ONCE` at a time; those that are slow on purpose wait beside the others.

    Args:
        deadline_s: a connection that is still open by then hangs.
        rate_hz: so many are started per second; 0: as soon as there is room.
    """
    gate, report = asyncio.Semaphore(NUM_AT_ONCE), Report()

    async def run(number: int, attack: Attack) -> None:
        if rate_hz:
            await asyncio.sleep(number / rate_hz)
        if attack.pause_s:
            await _one(port, attack, deadline_s, report)
            return
        async with gate:
            await _one(port, attack, deadline_s, report)

    await asyncio.gather(*(run(number, attack) for number, attack in enumerate(attacks)))
    return report


async def _one(port: int, attack: Attack, deadline_s: float, report: Report) -> None:
    began_s, received = time.monotonic(), bytearray()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    sender = asyncio.create_task(_send(writer, attack))
    try:
        async with asyncio.timeout(deadline_s):
            while piece := await reader.read(65536):
                received += piece
        faults = list(faults_of(bytes(received), attack))
    except ConnectionError:
        # It closed while we were sending: what came before may be lost, which is how TCP works.
        faults = list(faults_of(bytes(received), attack)) if received else []
    except TimeoutError:
        faults = [f"still open after {deadline_s:g} s, having said {bytes(received[:200])!r}"]
    finally:
        sender.cancel()
        writer.transport.abort()
    seen = [status for status, _, _ in answers_in(bytes(received))]
    report.statuses.setdefault(attack.kind, Counter())[seen[-1] if seen else 0] += 1
    start = b"".join(attack.parts[:2])[:400]
    report.faults.extend(f"{attack.kind}: {fault}; sent {start!r}" for fault in faults)
    report.slowest_s[attack.kind] = max(report.slowest_s.get(attack.kind, 0.0), time.monotonic() - began_s)


async def _send(writer: asyncio.StreamWriter, attack: Attack) -> None:
    try:
        for part in attack.parts:
            writer.write(part)
            await writer.drain()
            if attack.pause_s:
                await asyncio.sleep(attack.pause_s)
        if attack.end == "half-close":
            writer.write_eof()
        elif attack.end == "reset":
            writer.transport.abort()
    except ConnectionError:
        return  # the server closed; the reader sees what it said


def answers_in(received: bytes) -> Iterator[tuple[int, dict[str, str], bytes]]:
    """Status, headers and body of each answer; a body without a length is the rest."""
    while received:
        head, _, received = received.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        status = int(first.split()[1]) if first.startswith("HTTP/1.1 ") else -1
        pairs = (line.partition(":") for line in lines)
        headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
        length = int(headers.get("content-length", len(received))) if status >= 200 else 0
        yield status, headers, received[:length]
        received = received[length:]


def faults_of(received: bytes, attack: Attack) -> Iterator[str]:
    """What is wrong with the answers to an attack."""
    for status, headers, body in answers_in(received):
        if 100 <= status < 300:
            # What was sent before the hostile part may well be a good request.
            if status >= 200 and not attack.may_pass:
                yield f"{status}: {body[:200]!r}"
            continue
        if not 400 <= status < 500 and not (status == 501 and _names_a_feature(body)):
            yield f"{status}: {body[:300]!r}"
        elif "x-request-id" not in headers or not headers.get("content-type", "").startswith("application/json"):
            yield f"{status} with the headers {headers}"
        elif not _is_error_body(body):
            yield f"{status} without OpenAI's body: {body[:300]!r}"


def _error(body: bytes) -> dict[str, Any]:
    """OpenAI's error object; empty if the body is something else."""
    try:
        error = json.loads(body)["error"]
    except (ValueError, KeyError, TypeError):
        return {}
    return error if isinstance(error, dict) else {}


def _is_error_body(body: bytes) -> bool:
    error = _error(body)
    return error.keys() >= ERROR_KEYS and isinstance(error["message"], str) and bool(error["message"])


def _names_a_feature(body: bytes) -> bool:
    error = _error(body)
    return error.get("type") == "not_implemented_error" and bool(error.get("code"))
