# SPDX-License-Identifier: Apache-2.0
"""How planners see the store and the queue: questions only, answered when asked."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import overload

from ziggurat.memory.kv import KVStore
from ziggurat.scheduling.protocol import SequenceView
from ziggurat.scheduling.sequence import SequenceState
from ziggurat.scheduling.swapping import Swapper


class StoreProbe:
    """`KVProbe` over a KVStore. Waiting sequences are not open in the store; their tokens answer for them, and what is in the swap space
    counts as cached: it takes blocks and no computing."""

    def __init__(self, store: KVStore, waiting: Mapping[str, SequenceState], swap: Swapper | None = None) -> None:
        self._store = store
        self._waiting = waiting
        self._swap = swap

    def free_blocks(self) -> tuple[int, ...]:
        return self._store.free_blocks()

    def total_blocks(self) -> tuple[int, ...]:
        return self._store.total_blocks()

    def needed_blocks(self, seq_id: str, num_tokens: int) -> tuple[int, ...]:
        return self._store.needed_blocks(seq_id, num_tokens)

    def needed_to_admit(self, seq_id: str, num_tokens: int) -> tuple[int, ...]:
        seq = self._waiting[seq_id]
        ids = seq.token_ids()
        if self._swap is not None:
            cached = self._store.match(ids, salt=seq.cache_salt, max_cached=seq.max_cached)
            num_tokens += self._swapped(seq, cached)
        return self._store.needed_to_open(ids, num_tokens, salt=seq.cache_salt, max_cached=seq.max_cached)

    def peak_blocks(self, num_tokens: int) -> tuple[int, ...]:
        return self._store.peak_blocks(num_tokens)

    def cached_tokens(self, seq_id: str) -> int:
        seq = self._waiting[seq_id]
        cached = self._store.match(seq.token_ids(), salt=seq.cache_salt, max_cached=seq.max_cached)
        return cached if self._swap is None else cached + self._swapped(seq, cached)

    def _swapped(self, seq: SequenceState, num_cached: int) -> int:
        """Tokens behind the cached ones that come back from the swap space."""
        assert self._swap is not None
        own = self._swap.space.tokens(seq.seq_id) - num_cached
        return own if own > 0 else self._swap.kept_tokens(seq, num_cached)

    def held_blocks(self, seq_id: str) -> tuple[int, ...]:
        return self._store.held_blocks(seq_id)


class WaitingViews(Sequence[SequenceView]):
    """The queue as planners see it; a view is made when it is looked at, because most planners stop after a few."""

    def __init__(self, waiting: OrderedDict[str, SequenceState]) -> None:
        self._waiting = waiting

    @overload
    def __getitem__(self, index: int) -> SequenceView: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[SequenceView]: ...

    def __getitem__(self, index: int | slice) -> SequenceView | Sequence[SequenceView]:
        if isinstance(index, slice):
            return [seq.view() for seq in list(self._waiting.values())[index]]
        if index < 0:
            index += len(self._waiting)
        for seq in islice(self._waiting.values(), index, index + 1):
            return seq.view()
        raise IndexError(index)

    def __iter__(self) -> Iterator[SequenceView]:
        return (seq.view() for seq in self._waiting.values())

    def __len__(self) -> int:
        return len(self._waiting)
