# SPDX-License-Identifier: Apache-2.0
"""Parts of a file that pass through few places in memory, always in the same order, the next ones being read while one is used.

::

    parts    0  1  2  3  4 | 0  1 ..     part p has place p mod W for good
    place 0  0     2     4 | 0           a part is read as soon as its place is free and all parts before it are on their way
    place 1     1     3    |    1

The cycle never ends: while the last parts of one round are used, the first of the next are read.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ziggurat.memory.tiers.direct_file import DirectFile, ReadRequests


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One part: where it lies in the file, and the memory that it passes through, which others share."""

    offset: int
    place: memoryview
    place_number: int


class StreamWindow:
    """Serves parts in the order 0, 1, .., n - 1, 0, 1, .. One thread uses it; reading goes on beside it.

    Args:
        file: where the parts lie; the caller closes it after `stop`.
        check: called with (part, its bytes) when it has been read; raises if they are wrong.

    Attributes:
        waited_s: seconds that `acquire` had to wait for the file.
    """

    def __init__(
        self, file: DirectFile, parts: Sequence[Part], check: Callable[[int, memoryview], None] | None = None
    ) -> None:
        assert parts, "nothing to stream"
        self._file, self._parts, self._check = file, tuple(parts), check
        self._reading: dict[int, ReadRequests] = {}
        self._holder: dict[int, int] = {}
        self._next = 0
        self.waited_s = 0.0

    def start(self) -> None:
        """Begin a round at part 0; what a round before left in flight is waited for and forgotten."""
        self.stop()
        self._next = 0
        self._advance()

    def acquire(self, number: int) -> None:
        """Wait until a part is in its place. Parts come in order; what was acquired is released before the next one.

        Raises:
            OSError: it could not be read, twice. `start` begins again.
        """
        if number not in self._reading:
            assert number == 0 and not self._reading, f"part {number} is out of turn"
            self.start()
        started_s = time.perf_counter()
        try:
            self._reading[number].wait()
        except OSError:
            # Read long ago, while somebody else may have written or a drive was away for a moment: once more, now that it is needed.
            part = self._parts[number]
            self._reading[number] = self._file.read(part.offset, part.place)
            self._reading[number].wait()
        self.waited_s += time.perf_counter() - started_s
        if self._check is not None:
            self._check(number, self._parts[number].place)

    def release(self, number: int) -> None:
        """A part has been used: its place is free for the next one."""
        del self._reading[number]
        del self._holder[self._parts[number].place_number]
        self._advance()

    def stop(self) -> None:
        """Wait for what is in flight; nothing is held afterwards."""
        for requests in self._reading.values():
            while not requests.is_done:
                time.sleep(0.001)
        self._reading.clear()
        self._holder.clear()

    def _advance(self) -> None:
        part = self._parts[self._next]
        while part.place_number not in self._holder and self._next not in self._reading:
            self._holder[part.place_number] = self._next
            self._reading[self._next] = self._file.read(part.offset, part.place)
            self._next = (self._next + 1) % len(self._parts)
            part = self._parts[self._next]
