# SPDX-License-Identifier: Apache-2.0
"""Outputs on their way from the engine thread to an event loop, a bounded number of steps."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable

from ziggurat.engine.types import GenerateOutput

_LOG = logging.getLogger(__name__)
MAX_STEPS_AHEAD = 64
# How often an engine thread that waits looks whether its loop was closed under it.
_LOOK_S = 0.1


class Handover:
    """One callback on the loop however many steps have passed, and an engine thread that waits for a loop that is behind.

    Without the bound, an engine that is faster than its loop fills memory with outputs that nobody has read yet, and the loop,
    busy with handing them on, gets to nothing else.

    Args:
        loop: where ``receive`` is called.
        receive: gets the outputs of one step; steps come in order.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, receive: Callable[[list[GenerateOutput]], None]) -> None:
        self._loop = loop
        self._receive = receive
        self._steps: list[list[GenerateOutput]] = []
        self._taken = threading.Condition()

    def put(self, outputs: list[GenerateOutput]) -> None:
        """Leave the outputs of a step for the loop; returns when fewer than `MAX_STEPS_AHEAD` steps wait. On the engine thread."""
        with self._taken:
            self._steps.append(outputs)
            is_first = len(self._steps) == 1
        if is_first:
            try:
                self._loop.call_soon_threadsafe(self._take)
            except RuntimeError:
                _LOG.debug("outputs for a closed event loop are dropped: nobody can read them")
                self._drop()
        with self._taken:
            while len(self._steps) >= MAX_STEPS_AHEAD and not self._loop.is_closed():
                self._taken.wait(_LOOK_S)

    def _drop(self) -> None:
        with self._taken:
            self._steps = []

    def _take(self) -> None:
        with self._taken:
            steps, self._steps = self._steps, []
            self._taken.notify()
        for outputs in steps:
            self._receive(outputs)
