# SPDX-License-Identifier: Apache-2.0
"""Another budget while the engine runs: the KV pool shrinks or grows, nothing is lost.

A smaller pool takes free blocks first, then cached prefixes by the eviction policy (those of kept sessions too), then the blocks of the
sequences that the queue's order would preempt first; those wait, with a copy in the swap space if there is one, and go on. The pages of
blocks out of circulation are given back to the operating system at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ziggurat.engine.types import BudgetChange
from ziggurat.errors import DoesNotFit
from ziggurat.memory.fit import refit
from ziggurat.units import format_bytes

if TYPE_CHECKING:
    from ziggurat.engine.engine import Engine
    from ziggurat.engine.resources import Resources


def change_budget(engine: Engine, memory_bytes: int) -> BudgetChange:
    """Give the engine another budget, between two steps.

    Raises:
        DoesNotFit: it would not hold one request of the longest kind, or it is more than address space was taken for; nothing changed.
    """
    before, after = engine.fit, refit(engine.fit, memory_bytes, engine.store.cache.sizes)
    evicted = engine.store.cache.num_evicted_blocks
    engine.drift.release()
    if memory_bytes < before.request.memory_bytes:
        engine.sessions.make_room(0)
    needed = engine.store.peak_blocks(after.plan.limits.max_model_len)
    if not engine.adapters.make_room(min(n - need for n, need in zip(after.num_blocks, needed, strict=True))):
        raise DoesNotFit(
            f"adapters that requests use now hold {engine.adapters.num_blocks} KV blocks, which do not fit beside one long request in "
            f"{format_bytes(memory_bytes)}: wait until some have ended, or give more",
            needed_bytes=before.request.memory_bytes,
            available_bytes=memory_bytes,
        )
    swapper, mover = engine.core.swapper, engine.executor.mover
    if swapper is not None:
        swapper.begin()
    preempted = engine.core.make_room(after.num_blocks)
    retired = engine.store.cache.resize(after.num_blocks)
    if swapper is not None and mover is not None:
        # Pages go back next: what has to be copied out of them goes first.
        mover.carry_out(swapper.take_moves(True))
    engine.store.accounts.settle(None)
    _discard(engine.resources, retired)
    engine.resources.refit(after)
    engine.fit = after
    engine.scores.max_bytes = engine.resources.reserve_bytes() // 2
    return BudgetChange(
        before_bytes=before.request.memory_bytes,
        after_bytes=memory_bytes,
        num_blocks=after.num_blocks,
        num_preempted=len(preempted),
        num_evicted_blocks=engine.store.cache.num_evicted_blocks - evicted,
    )


def _discard(resources: Resources, retired: Sequence[Sequence[int]]) -> None:
    plan = resources.fit.plan
    for group, pool, blocks in zip(plan.program.kv_groups(), resources.pools, retired, strict=True):
        size = plan.block_bytes(group)
        for first, end in _runs(blocks):
            pool.discard(first * size, (end - first) * size)


def _runs(blocks: Sequence[int]) -> list[tuple[int, int]]:
    """Neighbours together, as half-open ranges: a page that two blocks share goes when both do."""
    runs: list[tuple[int, int]] = []
    for block in sorted(blocks):
        if runs and runs[-1][1] == block:
            runs[-1] = (runs[-1][0], block + 1)
        else:
            runs.append((block, block + 1))
    return runs
