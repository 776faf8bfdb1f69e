# SPDX-License-Identifier: Apache-2.0
"""Who advances time. Policies get ``now`` as a number; drivers get a Clock; nobody else reads the time.

`WallClock` is real time, `SkippingClock` real time without the waiting.
`VirtualClock` moves only when its owner says so, and `VirtualRuntime` is the event loop of every
simulation: a heap of (time, sequence number, callback), so that ties are broken by the order of scheduling and by nothing else.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable
from typing import Protocol


class Clock(Protocol):
    """A source of seconds. Only differences mean something."""

    def now(self) -> float:
        """Seconds since an arbitrary, fixed moment."""
        ...

    def sleep_until(self, moment_s: float) -> None:
        """Return when ``now() >= moment_s``; at once if that is already so."""
        ...


class WallClock:
    """Monotonic real time."""

    def now(self) -> float:
        return time.monotonic()

    def sleep_until(self, moment_s: float) -> None:
        delay_s = moment_s - time.monotonic()
        if delay_s > 0:
            time.sleep(delay_s)


class SkippingClock:
    """Real time for work, none for waiting: a sleep returns at once and moves the clock. For measurements whose idle gaps say nothing."""

    def __init__(self) -> None:
        self._skipped_s = 0.0

    def now(self) -> float:
        return time.monotonic() + self._skipped_s

    def sleep_until(self, moment_s: float) -> None:
        self._skipped_s += max(0.0, moment_s - self.now())


class VirtualClock:
    """Time that stands still until somebody moves it forward."""

    def __init__(self, start_s: float = 0.0) -> None:
        self._now_s = start_s

    def now(self) -> float:
        return self._now_s

    def sleep_until(self, moment_s: float) -> None:
        self._now_s = max(self._now_s, moment_s)


class Runtime(Protocol):
    """Runs callbacks at given times."""

    clock: Clock

    def spawn(self, at_s: float, callback: Callable[[], None]) -> None:
        """Call ``callback`` when the clock reaches ``at_s``; equal times run in the order of spawning."""
        ...

    def run(self) -> None:
        """Run until nothing is left to do."""
        ...


class VirtualRuntime:
    """Deterministic discrete-event loop over a VirtualClock."""

    def __init__(self, clock: VirtualClock | None = None) -> None:
        self.clock: Clock = clock or VirtualClock()
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._sequence = 0

    def spawn(self, at_s: float, callback: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (max(at_s, self.clock.now()), self._sequence, callback))
        self._sequence += 1

    def run(self) -> None:
        while self._heap:
            at_s, _, callback = heapq.heappop(self._heap)
            self.clock.sleep_until(at_s)
            callback()


class WallRuntime(VirtualRuntime):
    """The same loop against real time: each callback waits for its moment."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = WallClock()
