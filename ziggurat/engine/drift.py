# SPDX-License-Identifier: Apache-2.0
"""The ledger against reality: memory above the baseline that no lease explains shrinks the KV pool, visibly.

Blocks leave circulation by being reserved for a sequence of nobody's, named in the ledger; their pages are given back. They return when
the drift has gone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from ziggurat.engine.resources import Resources
from ziggurat.memory.kv import DROPPED, spare_blocks
from ziggurat.memory.machine import Machine
from ziggurat.memory.paged import PagedKVStore
from ziggurat.units import ceil_div, format_bytes

CHECK_INTERVAL_STEPS = 512
BALLAST = "drift"
"""Owner of the blocks that are out of circulation."""

_LOG = logging.getLogger(__name__)


class DriftWatch:
    """Compares what the process is charged for with the ledger every `CHECK_INTERVAL_STEPS` calls of `tick`.

    Args:
        store: gives up blocks; never so many that a lone sequence of max_model_len would not fit any more.

        set_aside: blocks of each group that are out of circulation, these among them.

    Attributes:
        drift_bytes: at the last check, what the process has above the baseline and the ledger's known bytes; may be negative.
        num_blocks: blocks per group that are out of circulation.
    """

    def __init__(
        self,
        resources: Resources,
        store: PagedKVStore,
        machine: Machine,
        set_aside: Callable[[], int] | None = None,
    ) -> None:
        self._set_aside = set_aside or (lambda: self.num_blocks)
        self._resources = resources
        self._store = store
        self._machine = machine
        self._ticks = 0
        self._ballast: list[str] = []
        self._num_made = 0
        self.drift_bytes = 0

    def tick(self) -> None:
        """One engine step has passed."""
        self._ticks += 1
        if self._ticks % CHECK_INTERVAL_STEPS == 0:
            self.check()

    def check(self) -> None:
        """Measure now and adjust the pool."""
        resources = self._resources
        measured = self._machine.process_memory().charged_bytes - resources.baseline_bytes
        self.drift_bytes = measured - resources.known_bytes()
        excess_bytes = self.drift_bytes - resources.reserve_bytes()
        plan = resources.fit.plan
        block_bytes = sum(plan.block_bytes(group) for group in plan.program.kv_groups())
        wanted = max(0, ceil_div(excess_bytes, block_bytes))
        if wanted != self.num_blocks:
            before = self.num_blocks
            self._set(wanted)
            if self.num_blocks != before:
                _LOG.warning(
                    "memory drift: %s above the ledger (reserve %s); %d of %d KV blocks per group are out of circulation",
                    format_bytes(self.drift_bytes),
                    format_bytes(resources.reserve_bytes()),
                    self.num_blocks,
                    min(self._store.total_blocks()),
                )

    @property
    def num_blocks(self) -> int:
        """Blocks of each group that are out of circulation."""
        return len(self._ballast)

    def release(self) -> None:
        """Put all blocks back."""
        self._set(0)

    def _set(self, wanted: int) -> None:
        while len(self._ballast) > wanted:
            self._store.release(self._ballast.pop())
        spare = spare_blocks(self._store, self._resources.fit.plan.limits.max_model_len)
        spare -= self._set_aside() - self.num_blocks
        while len(self._ballast) < min(wanted, spare) and min(self._store.free_blocks()) > 0:
            self._take_one()

    def _take_one(self) -> None:
        self._num_made += 1
        name = f"{BALLAST}/{self._num_made}"
        self._store.open(name, [0], max_cached=0)
        self._store.reserve(name, 1)
        self._ballast.append(name)
        groups = self._resources.fit.plan.program.kv_groups()
        for group, table in zip(groups, self._store.view(name).tables, strict=True):
            size = self._resources.fit.plan.block_bytes(group)
            for block in table:
                if block != DROPPED:
                    self._resources.pools[group.index].discard(block * size, size)
