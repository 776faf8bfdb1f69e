# SPDX-License-Identifier: Apache-2.0
"""Maps what the next steps will need while this one computes.

A step of vAttention: `before_step` waits for the mapping that was started during the last step, carries out what this step needs and is
not mapped yet (the beginning of a prompt), and starts a thread that maps the next blocks of the running sequences. Without the thread every
new block is mapped when it is needed, and the step waits for it.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal

from ziggurat.memory.virtual.arena import VirtualArena
from ziggurat.memory.virtual.store import VirtualKVStore

LOOK_AHEAD_TOKENS = 10
"""Steps of decode that are looked ahead (the paper's value)."""
LOOK_AHEAD_BLOCKS = 2
"""The most blocks that are mapped ahead in one step (the paper's value)."""

Mode = Literal["async", "sync"]


class Mapper:
    """Keeps an arena at what a store says. One thread; `close` ends it.

    The thread only maps places that no sequence uses yet, so it never touches what a kernel reads.

    Args:
        mode: ``sync`` maps everything when it is needed, as a baseline.
    """

    def __init__(self, store: VirtualKVStore, arena: VirtualArena, *, mode: Mode = "async") -> None:
        self.store, self.arena, self.mode = store, arena, mode
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="kv-mapper") if mode == "async" else None
        self._pending: Future[None] | None = None

    def before_step(self) -> None:
        """Everything that open sequences have reserved is mapped when this returns.

        Raises:
            DoesNotFit: the operating system refuses a mapping.
        """
        self.join()
        self.arena.apply(self.store.changes(), populate=self._pool is not None)
        if self._pool is not None:
            self.store.look_ahead(LOOK_AHEAD_TOKENS, LOOK_AHEAD_BLOCKS)
            runs = self.store.changes()
            if runs:
                self._pending = self._pool.submit(self.arena.apply, runs, populate=True)

    def join(self) -> None:
        """Wait for the thread; what it could not do is raised here."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def close(self) -> None:
        """Wait for the thread and end it. The arena stays."""
        if self._pool is not None:
            self._pool.shutdown(wait=True)
        self._pending = None
