# SPDX-License-Identifier: Apache-2.0
"""Which block of physical memory is mapped where in which slot: the decisions of vAttention, as plain data.

A slot is the reserved address range of one sequence, as long as the longest one may become. Its blocks are mapped as the sequence grows::

    slot 0   | 7 | 2 | 9 | 4 | - | - |     a sequence of four blocks
    slot 1   | 7 | 3 | - | - | - | - |     shares its first block: the same memory at two addresses
    slot 2   | 5 | 8 | - | - | - | - |     nobody's: what an ended sequence left mapped, for the next one that comes

What an ended sequence leaves stays mapped until somebody needs the memory (deferred reclamation). It is then taken from the highest slot
downwards, and from a slot's end.

Source: Prabhu et al., "vAttention: Dynamic Memory Management for Serving LLMs without PagedAttention", arXiv 2405.04437, section 5.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass

UNMAPPED = -1
"""In place of a block: nothing is mapped there, and reading it faults."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MapRun:
    """Map the blocks ``[block, block + num_blocks)`` at ``[index, index + num_blocks)`` of a slot; unmap these places where ``block`` is
    `UNMAPPED`."""

    slot: int
    index: int
    block: int
    num_blocks: int


class SlotMap:
    """The mapping of all slots, and the changes that have not been carried out yet.

    Args:
        num_slots: sequences that may be open at once.
        slot_blocks: blocks of the longest sequence.
    """

    def __init__(self, num_slots: int, slot_blocks: int) -> None:
        assert num_slots > 0 and slot_blocks > 0
        self.num_slots, self.slot_blocks = num_slots, slot_blocks
        self.mapped: list[list[int]] = [[] for _ in range(num_slots)]
        self.tenants: list[str | None] = [None] * num_slots
        self._used = [0] * num_slots
        self._places: dict[int, set[tuple[int, int]]] = {}
        self._spare: list[tuple[int, int, int]] = []
        self._changed: dict[tuple[int, int], None] = {}

    # -- slots --------------------------------------------------------------------------------------------------------

    def open(self, seq_id: str, num_blocks: int, is_free: Callable[[int], bool]) -> int | None:
        """Give a sequence that needs so many blocks a slot: the one with the fewest ready blocks among those that have enough, else the
        first that is nobody's. None when all are in use."""
        idle = [slot for slot, tenant in enumerate(self.tenants) if tenant is None]
        if not idle:
            return None
        ready = {slot: self._num_ready(slot, is_free) for slot in idle}
        enough = [slot for slot in idle if ready[slot] >= num_blocks]
        slot = min(enough, key=lambda each: (ready[each], each)) if enough else idle[0]
        self.tenants[slot], self._used[slot] = seq_id, 0
        return slot

    def close(self, slot: int) -> None:
        """The sequence ends; its blocks stay mapped."""
        self._retire(slot, 0)
        self.tenants[slot] = None

    def set_table(self, slot: int, table: Sequence[int]) -> None:
        """These are the blocks of the slot's sequence now."""
        assert self.tenants[slot] is not None and len(table) <= self.slot_blocks
        for index, block in enumerate(table):
            if index >= len(self.mapped[slot]) or self.mapped[slot][index] != block:
                self._put(slot, index, block)
        self._retire(slot, len(table))

    def used_blocks(self, slot: int) -> int:
        """Blocks of the slot's sequence."""
        return self._used[slot]

    # -- blocks -------------------------------------------------------------------------------------------------------

    def ready_block(self, slot: int, index: int) -> int:
        """What is mapped at a place that the slot's sequence does not use yet, or `UNMAPPED`."""
        return self.mapped[slot][index] if self._used[slot] <= index < len(self.mapped[slot]) else UNMAPPED

    def is_mapped(self, block: int) -> bool:
        """Whether the block is mapped in any slot."""
        return bool(self._places.get(block))

    def spare_block(self, is_free: Callable[[int], bool], *, can_disturb: bool) -> int:
        """The free block that is given up first: the last one of the highest slot, beyond what its sequence uses. `UNMAPPED` if there
        is none, or if it lies ready for a running sequence and that must not be disturbed. O(log n)."""
        while self._spare:
            slot, index = -self._spare[0][0], -self._spare[0][1]
            block = self._spare[0][2]
            if (slot, index) in self._places.get(block, ()) and index >= self._used[slot] and is_free(block):
                return block if can_disturb or self.tenants[slot] is None else UNMAPPED
            heapq.heappop(self._spare)
        return UNMAPPED

    def take(self, block: int, slot: int, index: int) -> None:
        """A free block becomes that sequence's: it is unmapped wherever else it was, so that nobody reads what comes into it."""
        for place in list(self._places.get(block, ())):
            if place != (slot, index):
                assert place[1] >= self._used[place[0]], f"block {block} was free and is used in slot {place[0]}"
                self._put(*place, UNMAPPED)

    def prepare(self, slot: int, index: int, block: int) -> None:
        """Map a free block ahead of its use; it leaves wherever it lay ready before."""
        assert index >= self._used[slot]
        self.take(block, slot, index)
        self._put(slot, index, block)
        self._offer(slot, index, block)

    def changes(self) -> list[MapRun]:
        """What has to be mapped and unmapped before the next step reads the slots; neighbours are one call. Asking takes them."""
        runs: list[MapRun] = []
        for slot, index in sorted(self._changed):
            row = self.mapped[slot]
            block = row[index] if index < len(row) else UNMAPPED
            last = runs[-1] if runs else None
            if last is not None and _follows(last, slot, index, block):
                runs[-1] = MapRun(slot=slot, index=last.index, block=last.block, num_blocks=last.num_blocks + 1)
            else:
                runs.append(MapRun(slot=slot, index=index, block=block, num_blocks=1))
        self._changed.clear()
        return runs

    def audit(self) -> None:
        """Check that the two directions of the mapping agree."""
        places: dict[int, set[tuple[int, int]]] = {}
        for slot, row in enumerate(self.mapped):
            assert len(row) <= self.slot_blocks and not (row and row[-1] == UNMAPPED), f"slot {slot}: its end"
            assert self._used[slot] <= len(row), f"slot {slot}: uses {self._used[slot]} blocks, {len(row)} are mapped"
            assert UNMAPPED not in row[: self._used[slot]], f"slot {slot}: a hole in what is used"
            for index, block in enumerate(row):
                if block != UNMAPPED:
                    places.setdefault(block, set()).add((slot, index))
        assert places == {block: where for block, where in self._places.items() if where}, "mapping and places differ"

    # -- parts --------------------------------------------------------------------------------------------------------

    def _num_ready(self, slot: int, is_free: Callable[[int], bool]) -> int:
        for index, block in enumerate(self.mapped[slot]):
            if block == UNMAPPED or not is_free(block):
                return index
        return len(self.mapped[slot])

    def _retire(self, slot: int, num_blocks: int) -> None:
        for index in range(num_blocks, self._used[slot]):
            self._offer(slot, index, self.mapped[slot][index])
        self._used[slot] = num_blocks

    def _offer(self, slot: int, index: int, block: int) -> None:
        heapq.heappush(self._spare, (-slot, -index, block))

    def _put(self, slot: int, index: int, block: int) -> None:
        row = self.mapped[slot]
        row.extend([UNMAPPED] * (index + 1 - len(row)))
        if row[index] != UNMAPPED:
            self._places[row[index]].discard((slot, index))
        row[index] = block
        if block != UNMAPPED:
            self._places.setdefault(block, set()).add((slot, index))
        while row and row[-1] == UNMAPPED:
            row.pop()
        self._changed[slot, index] = None


def _follows(last: MapRun, slot: int, index: int, block: int) -> bool:
    if slot != last.slot or index != last.index + last.num_blocks:
        return False
    return block == UNMAPPED if last.block == UNMAPPED else block == last.block + last.num_blocks
