# SPDX-License-Identifier: Apache-2.0
"""``--memory-pressure follow``: the budget shrinks when the control group's limit does or the kernel stalls for memory, and grows back."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from ziggurat.errors import DoesNotFit, EngineError
from ziggurat.memory.ledger import RAM
from ziggurat.memory.machine import Machine, default_budget
from ziggurat.memory.pressure import PSI_PATHS, BudgetGovernor, read_stalls
from ziggurat.server.console import log_event
from ziggurat.server.service import Service
from ziggurat.units import format_bytes

INTERVAL_S = 1.0


async def follow_pressure(
    service: Service,
    *,
    machine: Machine | None = None,
    psi_paths: tuple[Path, ...] = PSI_PATHS,
    interval_s: float = INTERVAL_S,
    now: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Look every second until cancelled; ends by itself when the engine has failed."""
    machine = machine or Machine()
    limit_at_start = machine.memory_limit_bytes()
    try:
        report = await service.memory()
        governor = BudgetGovernor(most=report["limits"][RAM], budget=report["limits"][RAM])
        while True:
            await sleep(interval_s)
            report = await service.memory()
            governor.budget = report["limits"][RAM]  # an administrator may have changed it
            room = _room(machine, limit_at_start, report["baseline_bytes"], governor.most)
            stalls = read_stalls(psi_paths)
            wanted = governor.decide(now(), room, stalls)
            if wanted is not None:
                await _change(service, governor, wanted, stalls)
    except EngineError:
        return  # the server says it and goes down


def _room(machine: Machine, limit_at_start: int, baseline_bytes: int, most: int) -> int:
    """What the limit leaves; everything while it is what it was, because then the user has decided."""
    if machine.memory_limit_bytes() >= limit_at_start:
        return most
    try:
        return min(most, default_budget(baseline_bytes, machine))
    except DoesNotFit:
        return 0


async def _change(service: Service, governor: BudgetGovernor, wanted: int, stalls: float | None) -> None:
    before = governor.budget
    try:
        change = await service.set_memory(wanted)
    except DoesNotFit as error:
        if wanted >= before:
            return  # it was not to grow
        governor.refused(error.needed_bytes)
        if error.needed_bytes >= before:
            return
        change = await service.set_memory(error.needed_bytes)
    why = "" if stalls is None else f", stalled {stalls:.1f} % of the last 10 s"
    log_event(
        "budget",
        f"memory pressure: the budget is {format_bytes(change.after_bytes)} now, was {format_bytes(before)}{why}; "
        f"{change.num_preempted} sequences wait, {change.num_evicted_blocks} cached blocks left",
        {"before_bytes": before, "after_bytes": change.after_bytes, "stalls_percent": stalls},
        logging.WARNING if change.after_bytes < before else logging.INFO,
    )
