# SPDX-License-Identifier: Apache-2.0
"""``--memory-pressure follow`` over a service and a machine that are made up: shrinks, asks for the least that fits, grows back, ends."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from ziggurat.engine.types import BudgetChange
from ziggurat.errors import DoesNotFit, EngineError
from ziggurat.server.pressure import follow_pressure

MIB = 1 << 20


class Machine:
    limit = 4096 * MIB

    def memory_limit_bytes(self) -> int:
        return self.limit


class Service:
    """A budget that must be at least 300 MiB."""

    def __init__(self) -> None:
        self.budget = 2048 * MIB
        self.changes: list[int] = []
        self.is_dead = False

    async def memory(self) -> dict[str, Any]:
        if self.is_dead:
            raise EngineError("gone")
        return {"limits": {"ram": self.budget}, "baseline_bytes": 200 * MIB}

    async def set_memory(self, num_bytes: int) -> BudgetChange:
        if num_bytes < 300 * MIB:
            raise DoesNotFit("300 MiB is the least", needed_bytes=300 * MIB, available_bytes=num_bytes)
        before, self.budget = self.budget, num_bytes
        self.changes.append(num_bytes // MIB)
        return BudgetChange(
            before_bytes=before, after_bytes=num_bytes, num_blocks=(1,), num_preempted=0, num_evicted_blocks=0
        )


def follow(tmp_path: Path, looks: list[tuple[int, str]]) -> tuple[Service, float]:
    """Limits in MiB and PSI texts, one per second; then the engine fails."""
    service, machine, psi, clock = Service(), Machine(), tmp_path / "psi", [0.0]

    async def sleep(seconds: float) -> None:
        clock[0] += seconds
        if not looks:
            service.is_dead = True
            return
        limit, text = looks.pop(0)
        machine.limit = limit * MIB
        psi.write_text(text)

    task = follow_pressure(service, machine=machine, psi_paths=(psi,), now=lambda: clock[0], sleep=sleep)  # type: ignore[arg-type]
    asyncio.run(task)
    return service, clock[0]


CALM, BAD = "some avg10=0.00 avg60=0 avg300=0 total=0\n", "some avg10=35.00 avg60=0 avg300=0 total=0\n"


def test_limits_and_stalls_shrink_and_calm_grows(tmp_path: Path) -> None:
    looks = [(4096, CALM), (1500, CALM), (1500, CALM), (4096, BAD), (4096, CALM), *[(4096, CALM)] * 31]
    service, seconds = follow(tmp_path, looks)
    # 1,500 - 200 of the baseline - 256 that stay free; then a tenth less; after half a minute a tenth more.
    assert service.changes == [1044, 939, 1033] and seconds == 37.0


def test_the_least_that_fits_is_asked_for_once(tmp_path: Path) -> None:
    service, _ = follow(tmp_path, [(600, CALM)] * 5 + [(100, BAD)] * 5)
    assert service.changes == [300]
