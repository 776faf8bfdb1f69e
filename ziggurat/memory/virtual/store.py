# SPDX-License-Identifier: Apache-2.0
"""A paged store whose tables are mirrored in virtual address space, so that kernels which know no block tables can read them.

Everything about who holds which block, what is cached and what leaves is the paged store's. Added are the slots (`SlotMap`) and a
preference: a sequence that grows gets the free block that is already mapped where it grows to.
"""

from __future__ import annotations

from collections.abc import Sequence

from ziggurat.errors import ConfigError, KVCapacityExceeded
from ziggurat.memory.block_cache import LRU_EVICTION, Eviction
from ziggurat.memory.kv import CopyOp
from ziggurat.memory.ledger import Lease
from ziggurat.memory.open_sequence import OpenSequence
from ziggurat.memory.paged import PagedKVStore
from ziggurat.memory.virtual.slots import UNMAPPED, MapRun, SlotMap
from ziggurat.programs.program import KVGroup
from ziggurat.units import ceil_div

_LOOK_AT = 32
"""Of the blocks freed last, how many are looked at for one that is mapped nowhere."""


class VirtualKVStore(PagedKVStore):
    """A `KVStore` whose sequences also have a slot each.

    Args:
        groups: one full-attention group. Windows would punch holes into a range that kernels read from its beginning.
        block_size: tokens of a page group; prefixes are shared in such units.
        num_slots: sequences that may be open at once.
        max_model_len: tokens of the longest sequence.

    Raises:
        ConfigError: several groups, or a window.
    """

    def __init__(
        self,
        groups: Sequence[KVGroup],
        num_blocks: Sequence[int],
        block_size: int,
        *,
        num_slots: int,
        max_model_len: int,
        lease: Lease | None,
        block_bytes: Sequence[int],
        enable_prefix_caching: bool = True,
        eviction: Eviction = LRU_EVICTION,
        max_chunk_tokens: int | None = None,
    ) -> None:
        windows = [group.window for group in groups]
        if windows != [None]:
            raise ConfigError(
                f"a virtual KV space holds one group of full attention, this model has {len(windows)} groups with windows "
                f"{windows}: use the paged one"
            )
        super().__init__(
            groups,
            num_blocks,
            block_size,
            lease=lease,
            block_bytes=block_bytes,
            enable_prefix_caching=enable_prefix_caching,
            eviction=eviction,
            max_chunk_tokens=max_chunk_tokens,
        )
        self.max_model_len = max_model_len
        self.slots = SlotMap(num_slots, ceil_div(max_model_len, block_size))
        self._slot_of: dict[str, int] = {}

    def slot(self, seq_id: str) -> int:
        """The slot of an open sequence."""
        return self._slot_of[seq_id]

    def open(self, seq_id: str, token_ids: Sequence[int], *, salt: str = "", max_cached: int | None = None) -> int:
        """As in `PagedKVStore`; the sequence also gets a slot.

        Raises:
            KVCapacityExceeded: every slot is in use; nothing was taken.
        """
        self._enter(seq_id, ceil_div(len(token_ids), self.block_size))
        num_cached = super().open(seq_id, token_ids, salt=salt, max_cached=max_cached)
        self._mirror(seq_id)
        return num_cached

    def fork(self, parent_id: str, child_id: str) -> None:
        """As in `PagedKVStore`: the child's slot shows the parent's memory until one of them writes.

        Raises:
            KVCapacityExceeded: every slot is in use; nothing was taken.
        """
        self._enter(child_id, 0)
        super().fork(parent_id, child_id)
        self._mirror(child_id)

    def reserve(self, seq_id: str, num_tokens: int) -> list[CopyOp]:
        """As in `PagedKVStore`.

        Raises:
            OutOfBlocks: not enough; nothing was taken.
            KVCapacityExceeded: longer than a slot; nothing was taken.
        """
        end = self.sequences[seq_id].num_computed + num_tokens
        if end > self.max_model_len:
            raise KVCapacityExceeded(
                f"sequence {seq_id} would have {end} tokens, a slot holds {self.max_model_len}: raise --max-model-len",
                needed_bytes=0,
                available_bytes=0,
            )
        copies = super().reserve(seq_id, num_tokens)
        self._mirror(seq_id)
        return copies

    def commit(self, seq_id: str, token_ids: Sequence[int]) -> None:
        """As in `PagedKVStore`."""
        super().commit(seq_id, token_ids)
        self._mirror(seq_id)

    def truncate(self, seq_id: str, num_tokens: int) -> None:
        """As in `PagedKVStore`; what is cut off stays mapped until its memory is wanted."""
        super().truncate(seq_id, num_tokens)
        self._mirror(seq_id)

    def release(self, seq_id: str) -> None:
        """As in `PagedKVStore`; what the slot shows stays mapped for its next sequence."""
        super().release(seq_id)
        self.slots.close(self._slot_of.pop(seq_id))

    def changes(self) -> list[MapRun]:
        """What to map and unmap before the next step (see `SlotMap.changes`)."""
        return self.slots.changes()

    def look_ahead(self, num_tokens: int, max_blocks: int) -> int:
        """Map free blocks where running sequences will need them within so many tokens, the nearest first. Returns how many.

        Nothing is promised to a sequence by this: a block that another one needs first is taken away again.
        """
        wanted = []
        for seq in self.sequences.values():
            index = len(seq.tables[0])
            away = index * self.block_size - seq.num_computed
            slot = self._slot_of[seq.seq_id]
            if away <= num_tokens and index < self.slots.slot_blocks:
                wanted.append((away, slot, index))
        num_mapped = 0
        for _, slot, index in sorted(wanted):
            if num_mapped == max_blocks:
                break
            if self.slots.ready_block(slot, index) != UNMAPPED:
                continue
            block = self._unmapped_block(can_disturb=False)
            if block is not None:
                self.slots.prepare(slot, index, block)
                num_mapped += 1
        return num_mapped

    def audit(self) -> None:
        """Also: every slot shows its sequence's blocks, and free memory is mapped in no used place."""
        super().audit()
        self.slots.audit()
        assert (
            {self.slots.tenants[slot] for slot in self._slot_of.values()} == set(self._slot_of) == set(self.sequences)
        )
        for seq_id, slot in self._slot_of.items():
            table = self.sequences[seq_id].tables[0]
            assert self.slots.mapped[slot][: len(table)] == table, f"slot {slot} does not show {seq_id}"
            assert self.slots.used_blocks(slot) == len(table)

    # -- parts --------------------------------------------------------------------------------------------------------

    def _enter(self, seq_id: str, num_blocks: int) -> None:
        slot = self.slots.open(seq_id, num_blocks, self._is_free)
        if slot is None:
            raise KVCapacityExceeded(
                f"all {self.slots.num_slots} slots of the KV space are in use: raise --max-num-seqs",
                needed_bytes=0,
                available_bytes=0,
            )
        self._slot_of[seq_id] = slot

    def _mirror(self, seq_id: str) -> None:
        self.slots.set_table(self._slot_of[seq_id], self.sequences[seq_id].tables[0])

    def _is_free(self, block: int) -> bool:
        pool = self.cache.pools[0]
        return pool.is_free(block)

    def _take(self, seq: OpenSequence, group: int) -> int:
        slot, index = self._slot_of[seq.seq_id], len(seq.tables[group])
        self.cache.make_room(group)
        seq.num_charged[group] += 1
        ready = self.slots.ready_block(slot, index)
        wanted = ready if ready != UNMAPPED and self._is_free(ready) else self._unmapped_block(can_disturb=True)
        block = self.cache.pools[group].take(seq.seq_id, wanted)
        self.slots.take(block, slot, index)
        return block

    def _unmapped_block(self, *, can_disturb: bool) -> int | None:
        """A free block that is mapped nowhere if one is near, else the one that is given up first, of a running sequence only if it may
        be; None if there is none."""
        pool = self.cache.pools[0]
        for block in reversed(pool.free_list[-_LOOK_AT:]):
            if not self.slots.is_mapped(block):
                return block
        if pool.num_unused:
            return pool.begin_block()
        spare = self.slots.spare_block(self._is_free, can_disturb=can_disturb)
        return None if spare == UNMAPPED else spare
