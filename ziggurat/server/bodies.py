# SPDX-License-Identifier: Apache-2.0
"""How many bytes of request bodies are held at one time: bounded, whatever the number of clients, because the budget holds for them too."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from ziggurat.errors import QueueFull
from ziggurat.server.config import ServerConfig
from ziggurat.units import format_bytes

# In caps of one body.
HELD_CAPS = 2
RETRY_AFTER_S = 1
# After each part (at most 256 KiB) of a body that is thrown away: some 25 MB/s for all of them together.
DISCARD_PAUSE_S = 0.01


class Bodies:
    """The request bodies in memory.

    Attributes:
        config: the limits of one body.
        max_bytes: bound of their sum.
    """

    def __init__(self, config: ServerConfig) -> None:
        self.config = config
        self.max_bytes = config.max_body_bytes * HELD_CAPS
        self.num_bytes = 0
        self._discarding = asyncio.Lock()

    async def pause_discarding(self) -> None:
        """Wait before the next part of a body that nobody will read: giants share one pace, and streams of tokens go on beside them."""
        async with self._discarding:
            await asyncio.sleep(DISCARD_PAUSE_S)

    @contextmanager
    def hold(self) -> Iterator[HeldBody]:
        """One request's share, given back at the end of the block: when its text has become token ids."""
        held = HeldBody(self)
        try:
            yield held
        finally:
            held.resize(0)


class HeldBody:
    """How much of `Bodies` one request holds."""

    def __init__(self, bodies: Bodies) -> None:
        self.config = bodies.config
        self._bodies = bodies
        self._num_bytes = 0

    async def pause_discarding(self) -> None:
        """See `Bodies.pause_discarding`."""
        await self._bodies.pause_discarding()

    def resize(self, num_bytes: int) -> None:
        """Hold ``num_bytes``.

        Raises:
            QueueFull: the bodies of other requests leave too little; nothing has changed.
        """
        total = self._bodies.num_bytes + num_bytes - self._num_bytes
        if num_bytes > self._num_bytes and total > self._bodies.max_bytes:
            held, limit = format_bytes(self._bodies.num_bytes), format_bytes(self._bodies.max_bytes)
            raise QueueFull(
                f"{held} of request bodies are being read already, and {limit} is the limit; try again in {RETRY_AFTER_S} s",
                retry_after_s=RETRY_AFTER_S,
            )
        self._bodies.num_bytes, self._num_bytes = total, num_bytes
