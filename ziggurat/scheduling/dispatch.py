# SPDX-License-Identifier: Apache-2.0
"""Which instance gets a request. Indexed by load reports: a decision costs O(log instances), never a look at all of them.

Pure: a dispatcher sees reports and requests, and answers with numbers of instances. Ties go to the lowest number.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from ziggurat.registry import Registry


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What an instance says of itself.

    Attributes:
        num_running, num_waiting: sequences.
        waiting_tokens: prompt tokens that have not been admitted.
        free_blocks: KV blocks that can be had.
    """

    num_running: int
    num_waiting: int
    waiting_tokens: int
    free_blocks: int


class Dispatcher(Protocol):
    """Sends requests to instances 0 .. n - 1."""

    def on_load(self, instance: int, report: LoadReport) -> None:
        """An instance reports; at any time, also after each request that it was given."""
        ...

    def dispatch(self, prompt_ids: Sequence[int]) -> int:
        """The instance for a request."""
        ...


DISPATCHERS: Registry[Callable[[int, int], Dispatcher]] = Registry("dispatcher")
"""Name -> (number of instances, block size) -> dispatcher."""


@DISPATCHERS.register("round_robin")
class RoundRobin:
    """One after the other, whatever they do. Wrong where requests differ in size."""

    def __init__(self, num_instances: int, block_size: int) -> None:
        self._num_instances, self._next = num_instances, 0

    def on_load(self, instance: int, report: LoadReport) -> None:
        """Does not care."""

    def dispatch(self, prompt_ids: Sequence[int]) -> int:
        """The next one."""
        found = self._next
        self._next = (found + 1) % self._num_instances
        return found


@DISPATCHERS.register("least_load")
class LeastLoad:
    """The instance with the fewest sequences, waiting ones first among equals. A heap in which only the newest report of each counts."""

    def __init__(self, num_instances: int, block_size: int) -> None:
        self._versions = [0] * num_instances
        self._loads: list[tuple[int, int]] = [(0, 0)] * num_instances
        self._heap = [((0, 0), instance, 0) for instance in range(num_instances)]

    def on_load(self, instance: int, report: LoadReport) -> None:
        """File the newest report; old entries die when they come up."""
        load = (report.num_running + report.num_waiting, report.num_waiting)
        if load == self._loads[instance]:
            return
        self._loads[instance] = load
        self._versions[instance] += 1
        heapq.heappush(self._heap, (load, instance, self._versions[instance]))

    def dispatch(self, prompt_ids: Sequence[int]) -> int:
        """The least loaded."""
        while True:
            _, instance, version = self._heap[0]
            if version == self._versions[instance]:
                return instance
            heapq.heappop(self._heap)


@DISPATCHERS.register("prefix_aware")
class PrefixAware:
    """Where the beginning was sent before, unless that instance waits and another does not; else the least loaded.

    It remembers, for every block of tokens behind its prefix, who got it last: an estimate of who has it cached. O(prompt / block).
    """

    MAX_REMEMBERED = 1_000_000
    MAX_WAITING = 2

    def __init__(self, num_instances: int, block_size: int) -> None:
        self._block_size = block_size
        self._least = LeastLoad(num_instances, block_size)
        self._waiting = [0] * num_instances
        self._owners: dict[int, int] = {}

    def on_load(self, instance: int, report: LoadReport) -> None:
        """Note who waits."""
        self._waiting[instance] = report.num_waiting
        self._least.on_load(instance, report)

    def dispatch(self, prompt_ids: Sequence[int]) -> int:
        """The owner of the longest known beginning, or the least loaded."""
        hashes = self._hashes(prompt_ids)
        known = next((self._owners[each] for each in reversed(hashes) if each in self._owners), None)
        chosen = known if known is not None and self._waiting[known] < self.MAX_WAITING else self._least.dispatch(())
        if len(self._owners) > self.MAX_REMEMBERED:
            self._owners.clear()
        for each in hashes:
            self._owners[each] = chosen
        return chosen

    def _hashes(self, prompt_ids: Sequence[int]) -> list[int]:
        found, parent = [], 0
        for start in range(0, len(prompt_ids) - self._block_size + 1, self._block_size):
            parent = hash((parent, *prompt_ids[start : start + self._block_size]))
            found.append(parent)
        return found
