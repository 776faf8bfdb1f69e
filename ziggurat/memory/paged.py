# SPDX-License-Identifier: Apache-2.0
"""The paged KV store: block tables of sequences over reference-counted blocks, one pool per group.

A table of a full group and of a window group (block size 4, window 6), 13 tokens computed, space for 15::

    tokens   0   4   8   12  16
    full     | 7 | 2 | 9 | 4 )          blocks [0, 4): all of them
    window   | x | x | 3 | 5 )          token 13 sees [8, 13]: blocks 0 and 1 have left (x = DROPPED)

Full blocks enter the prefix forest when they are committed. If somebody else computed the same block after the same prefix first, the
sequence goes on with that one and gives its own back; a table may change at `commit`, and a `KVView` is good for one step only.
"""

from __future__ import annotations

from collections.abc import Sequence

from ziggurat.memory.block_cache import LRU_EVICTION, BlockCache, Eviction, first_visible_block, peak_window_blocks
from ziggurat.memory.forest import Key, PrefixNode
from ziggurat.memory.kv import DROPPED, CacheWatcher, CopyOp, KVStats, KVView, OutOfBlocks, WindowPassed
from ziggurat.memory.ledger import Lease
from ziggurat.memory.open_sequence import KVAccounts, OpenSequence
from ziggurat.memory.paged_audit import audit_store
from ziggurat.memory.reuse import CACHING_OFF, PrefixCounters, explain_miss, max_reusable_blocks
from ziggurat.programs.program import KVGroup
from ziggurat.units import ceil_div


class PagedKVStore:
    """A `KVStore` of paged groups. Names blocks only; the bytes are the executor's. Not thread-safe; the ledger is.

    Copies returned by one or several `reserve` calls are to be carried out in that order, before anything of the step is written.

    Args:
        groups: the Program's KV groups, in order.
        num_blocks: blocks of each group's pool.
        block_bytes: bytes of one block of each group.
        lease: holds at least all blocks; gets one child per open sequence and one for the cache (see `KVAccounts`). None: no accounts.
        max_chunk_tokens: the most tokens that are ever reserved at once beyond the computed ones; bounds what a window group needs.
    """

    def __init__(
        self,
        groups: Sequence[KVGroup],
        num_blocks: Sequence[int],
        block_size: int,
        *,
        lease: Lease | None,
        block_bytes: Sequence[int],
        enable_prefix_caching: bool = True,
        eviction: Eviction = LRU_EVICTION,
        max_chunk_tokens: int | None = None,
    ) -> None:
        assert len(groups) == len(num_blocks) == len(block_bytes) > 0 and block_size > 0
        self.block_size = block_size
        self.share_quantum_tokens = block_size
        self.windows = tuple(group.window for group in groups)
        self.enable_prefix_caching = enable_prefix_caching
        self.max_chunk_tokens = max_chunk_tokens
        self.cache = BlockCache(num_blocks, self.windows, block_size, eviction)
        self.sequences: dict[str, OpenSequence] = {}
        self.last_miss_reason: str | None = None
        self.accounts = KVAccounts(self.cache.pools, block_bytes, lease)
        self._query_tokens = self._hit_tokens = 0

    # -- questions ----------------------------------------------------------------------------------------------------

    def match(self, token_ids: Sequence[int], *, salt: str = "", max_cached: int | None = None) -> int:
        """Tokens `open` would find cached; takes nothing."""
        return self._find(token_ids, salt, max_cached)[1] * self.block_size

    def free_blocks(self) -> tuple[int, ...]:
        """Blocks that can be had now: free ones and evictable cached ones."""
        return tuple(pool.num_available for pool in self.cache.pools)

    def total_blocks(self) -> tuple[int, ...]:
        """The size of each group's pool."""
        return tuple(pool.total for pool in self.cache.pools)

    def needed_blocks(self, seq_id: str, num_tokens: int) -> tuple[int, ...]:
        """Blocks that ``reserve(seq_id, num_tokens)`` would take (copy-on-write included)."""
        return self._needed(self.sequences[seq_id], num_tokens)

    def needed_to_open(
        self, token_ids: Sequence[int], num_tokens: int, *, salt: str = "", max_cached: int | None = None
    ) -> tuple[int, ...]:
        """Blocks that `open` followed by ``reserve(num_tokens)`` would remove from `free_blocks`."""
        path, num_usable = self._find(token_ids, salt, max_cached)
        num_new = ceil_div(num_tokens, self.block_size)
        needed = []
        for group, pool in enumerate(self.cache.pools):
            first = self._first_visible(group, num_usable * self.block_size)
            num_pinned = sum(pool.refs[node.blocks[group]] == 0 for node in path[first:num_usable])
            needed.append(num_new + num_pinned)
        return tuple(needed)

    def peak_blocks(self, num_tokens: int) -> tuple[int, ...]:
        """The most blocks a lone sequence that grows to ``num_tokens`` ever holds at once.

        Without ``max_chunk_tokens`` it may be one chunk, and a window group holds all of it for a moment."""
        chunk = num_tokens if self.max_chunk_tokens is None else min(self.max_chunk_tokens, num_tokens)
        return tuple(peak_window_blocks(window, num_tokens, chunk, self.block_size) for window in self.windows)

    def held_blocks(self, seq_id: str) -> tuple[int, ...]:
        """Blocks that ``release(seq_id)`` would give back to `free_blocks` (those that nobody else holds)."""
        seq = self.sequences[seq_id]
        return tuple(
            sum(pool.refs[block] == 1 for block in table[first:])
            for pool, table, first in zip(self.cache.pools, seq.tables, seq.first, strict=True)
        )

    def view(self, seq_id: str) -> KVView:
        """The sequence's descriptor for executors, good for the step that follows."""
        seq = self.sequences[seq_id]
        if seq.view_tables is None:
            seq.view_tables = tuple(tuple(table) for table in seq.tables)
        return KVView(tables=seq.view_tables, num_tokens=seq.num_reserved, block_size=self.block_size)

    def stats(self) -> tuple[KVStats, ...]:
        """Counts per group."""
        return tuple(KVStats(total=pool.total, free=pool.num_free, cached=pool.num_cached) for pool in self.cache.pools)

    @property
    def counters(self) -> PrefixCounters:
        """What prefix reuse brought so far."""
        return PrefixCounters(
            query_tokens=self._query_tokens, hit_tokens=self._hit_tokens, evicted_blocks=self.cache.num_evicted_blocks
        )

    # -- a sequence's life --------------------------------------------------------------------------------------------

    def open(self, seq_id: str, token_ids: Sequence[int], *, salt: str = "", max_cached: int | None = None) -> int:
        """Start a sequence with the longest cached prefix, in whole blocks, never all of its tokens.

        Returns the cached tokens, which count as computed; ``last_miss_reason`` says why there are not more."""
        assert seq_id not in self.sequences, f"sequence {seq_id} is open"
        path, num_usable = self._find(token_ids, salt, max_cached)
        max_blocks = max_reusable_blocks(len(token_ids), self.block_size, max_cached)
        self.last_miss_reason = CACHING_OFF
        if self.enable_prefix_caching:
            self.last_miss_reason = explain_miss(self.cache.forest, token_ids, salt, max_blocks, path, num_usable)
        nodes = path[:num_usable]
        tail = nodes[-1] if nodes else self.cache.forest.root(salt)
        num_cached = num_usable * self.block_size
        first = [self._first_visible(group, num_cached) for group in range(len(self.windows))]
        seq = OpenSequence(
            seq_id=seq_id,
            tables=[[DROPPED] * start + [node.blocks[g] for node in nodes[start:]] for g, start in enumerate(first)],
            first=first,
            num_charged=[0] * len(first),
            tail=tail,
            lease=self.accounts.open(seq_id),
            nodes=nodes,
            num_computed=num_cached,
            num_reserved=num_cached,
        )
        self.cache.forest.pin(tail)
        for index in reversed(range(num_usable)):
            for group, start in enumerate(first):
                if index >= start:
                    self.cache.share(group, seq.tables[group][index], is_hit=True)
        self.sequences[seq_id] = seq
        self._query_tokens += len(token_ids)
        self._hit_tokens += num_cached
        return num_cached

    def hold(self, name: str, token_ids: Sequence[int], *, salt: str = "") -> int:
        """Keep what is cached of ``token_ids``, but for the last, until ``release(name)``. No use that is counted. Returns tokens."""
        counts = self._query_tokens, self._hit_tokens
        num_tokens = self.open(name, token_ids, salt=salt)
        self._query_tokens, self._hit_tokens = counts
        return num_tokens

    def reserve(self, seq_id: str, num_tokens: int) -> list[CopyOp]:
        """Take space for ``num_tokens`` more tokens after the computed ones.

        Raises:
            OutOfBlocks: not enough; nothing was taken.
        """
        seq = self.sequences[seq_id]
        assert self.max_chunk_tokens is None or num_tokens <= self.max_chunk_tokens, (
            f"{num_tokens} tokens at once, more than max_chunk_tokens={self.max_chunk_tokens}"
        )
        needed = self._needed(seq, num_tokens)
        available = self.free_blocks()
        if any(want > have for want, have in zip(needed, available, strict=True)):
            raise OutOfBlocks(f"sequence {seq_id} needs {needed} blocks, {available} can be had")
        if num_tokens == 0:
            return []
        copies = [copy for group in range(len(self.windows)) for copy in self._make_writable(seq, group)]
        seq.num_reserved = max(seq.num_reserved, seq.num_computed + num_tokens)
        for group, table in enumerate(seq.tables):
            while len(table) * self.block_size < seq.num_reserved:
                table.append(self._take(seq, group))
        if any(needed):
            seq.view_tables = None
            self.accounts.settle(seq)
        return copies

    def commit(self, seq_id: str, token_ids: Sequence[int]) -> None:
        """The next ``len(token_ids)`` reserved tokens have been computed with these ids."""
        seq = self.sequences[seq_id]
        assert seq.num_computed + len(token_ids) <= seq.num_reserved, f"sequence {seq_id} commits more than it reserved"
        if self.enable_prefix_caching:
            self._file(seq, token_ids)
        seq.num_computed += len(token_ids)
        for group, table in enumerate(seq.tables):
            first = self._first_visible(group, seq.num_computed)
            for index in range(seq.first[group], first):
                self._drop(seq, group, table[index])
                table[index] = DROPPED
                seq.view_tables = None
            seq.first[group] = max(seq.first[group], first)
        self.accounts.settle(seq)

    def truncate(self, seq_id: str, num_tokens: int) -> None:
        """Forget the tokens from ``num_tokens`` on and the space reserved for them.

        Raises:
            WindowPassed: the tokens before ``num_tokens`` that a window still needs have been given back; nothing was changed.
        """
        assert num_tokens >= 0, f"sequence {seq_id} cannot have {num_tokens} tokens"
        seq = self.sequences[seq_id]
        if num_tokens < seq.num_computed:
            self._rewind(seq, num_tokens)
        seq.num_reserved = min(seq.num_reserved, max(num_tokens, seq.num_computed))
        self._shorten(seq, ceil_div(seq.num_reserved, self.block_size))
        self.accounts.settle(seq)

    def fork(self, parent_id: str, child_id: str) -> None:
        """A second sequence with the same computed tokens; blocks are shared until one of them writes."""
        assert child_id not in self.sequences, f"sequence {child_id} is open"
        parent = self.sequences[parent_id]
        num_blocks = ceil_div(parent.num_computed, self.block_size)
        child = OpenSequence(
            seq_id=child_id,
            tables=[table[:num_blocks] for table in parent.tables],
            first=list(parent.first),
            num_charged=[0] * len(self.windows),
            tail=parent.tail,
            lease=self.accounts.open(child_id),
            nodes=list(parent.nodes),
            rest=list(parent.rest),
            num_computed=parent.num_computed,
            num_reserved=parent.num_computed,
        )
        self.cache.forest.pin(child.tail)
        for group, table in enumerate(child.tables):
            for block in table[child.first[group] :]:
                self.cache.share(group, block)
        self.sequences[child_id] = child

    def release(self, seq_id: str) -> None:
        """End a sequence. Its full blocks stay reusable, last ones evicted first, until somebody needs the space."""
        seq = self.sequences.pop(seq_id)
        self._shorten(seq, 0)
        self.cache.forest.unpin(seq.tail)
        self.accounts.settle(seq)
        if seq.lease is not None:
            seq.lease.release()

    # -- all sequences ------------------------------------------------------------------------------------------------

    def forget(self, token_ids: Sequence[int], *, salt: str = "") -> None:
        """Free what is cached of these tokens, last ones first, as far as nobody holds it and nothing longer goes on from it."""
        self.cache.forget(self.cache.forest.match(token_ids, salt, len(token_ids) // self.block_size))
        self.accounts.settle(None)

    def watch_cache(self, watcher: CacheWatcher) -> None:
        """See `KVStore.watch_cache`."""
        self.cache.watcher = watcher

    def drop_cache(self) -> None:
        """Forget every cached block that no sequence holds."""
        self.cache.evict_all()
        self.accounts.settle(None)

    def clear(self) -> None:
        """End all sequences and forget everything; the counters start again."""
        for seq_id in list(self.sequences):
            self.release(seq_id)
        self.drop_cache()
        self.cache.forest.forget_evictions()
        self.cache.num_evicted_blocks = self._query_tokens = self._hit_tokens = 0
        self.last_miss_reason = None

    def close(self) -> None:
        """`clear`, and give the cache's lease back; the store cannot be used any more."""
        self.clear()
        self.accounts.close()

    def audit(self) -> None:
        """Check every invariant (reference counts, free lists, tables, forest, leases); an assertion names the first that fails."""
        audit_store(self)

    # -- parts --------------------------------------------------------------------------------------------------------

    def _find(self, token_ids: Sequence[int], salt: str, max_cached: int | None) -> tuple[list[PrefixNode], int]:
        if not self.enable_prefix_caching:
            return [], 0
        return self.cache.find(token_ids, salt, max_reusable_blocks(len(token_ids), self.block_size, max_cached))

    def _first_visible(self, group: int, num_tokens: int) -> int:
        return first_visible_block(self.windows[group], num_tokens, self.block_size)

    def _needed(self, seq: OpenSequence, num_tokens: int) -> tuple[int, ...]:
        if num_tokens == 0:
            return (0,) * len(self.windows)
        num_new = max(0, ceil_div(seq.num_computed + num_tokens, self.block_size) - len(seq.tables[0]))
        last, used_slots = divmod(seq.num_computed, self.block_size)
        return tuple(
            num_new + (used_slots > 0 and pool.refs[table[last]] > 1)
            for pool, table in zip(self.cache.pools, seq.tables, strict=True)
        )

    def _take(self, seq: OpenSequence, group: int) -> int:
        seq.num_charged[group] += 1
        return self.cache.take(group, seq.seq_id)

    def _drop(self, seq: OpenSequence, group: int, block: int) -> None:
        pool = self.cache.pools[group]
        if pool.payers[block] == seq.seq_id:
            pool.discharge(block)
            seq.num_charged[group] -= 1
        self.cache.drop(group, block)

    def _make_writable(self, seq: OpenSequence, group: int) -> list[CopyOp]:
        """See that nobody else reads the partly filled block that the next token goes to."""
        last, used_slots = divmod(seq.num_computed, self.block_size)
        if not used_slots:
            return []
        block, pool = seq.tables[group][last], self.cache.pools[group]
        if pool.refs[block] > 1:
            copy = seq.tables[group][last] = self._take(seq, group)
            self._drop(seq, group, block)
            return [CopyOp(group=group, source=block, destination=copy)]
        if pool.nodes[block] is not None:
            # Left from before a truncate. Overwriting it costs a cached prefix, copying it could cost a block that is not there.
            self.cache.detach(group, block)
        return []

    def _file(self, seq: OpenSequence, token_ids: Sequence[int]) -> None:
        """Enter the blocks that become full into the forest."""
        tokens = [*seq.rest, *token_ids]
        num_full = len(tokens) // self.block_size
        for index in range(num_full):
            self._file_block(seq, self.cache.forest.key(tokens, index))
        seq.rest = tokens[num_full * self.block_size :]
        self._move_tail(seq)

    def _file_block(self, seq: OpenSequence, key: Key) -> None:
        index = len(seq.nodes)
        parent = seq.nodes[-1] if seq.nodes else seq.tail
        node = parent.children.get(key)
        if node is None:
            node = self.cache.insert(parent, key, [table[index] for table in seq.tables])
        else:
            for group, table in enumerate(seq.tables):
                own, theirs = table[index], node.blocks[group]
                if theirs == DROPPED:
                    self.cache.fill(node, group, own)
                else:
                    self.cache.share(group, theirs, is_hit=True)
                    table[index] = theirs
                    self._drop(seq, group, own)
            seq.view_tables = None
        seq.nodes.append(node)

    def _move_tail(self, seq: OpenSequence) -> None:
        """Pin where the sequence now continues."""
        old = seq.tail
        new = seq.nodes[-1] if seq.nodes else self.cache.forest.root(old.salt)
        if new is not old:
            self.cache.forest.pin(new)
            seq.tail = new
            self.cache.forest.unpin(old)

    def _rewind(self, seq: OpenSequence, num_tokens: int) -> None:
        for group, first in enumerate(seq.first):
            if num_tokens > 0 and first > self._first_visible(group, num_tokens):
                raise WindowPassed(
                    f"sequence {seq.seq_id} has given back what token {num_tokens} sees in group {group}"
                )
        num_full, num_rest = divmod(num_tokens, self.block_size)
        if self.enable_prefix_caching:
            rest = seq.nodes[num_full].key if num_full < len(seq.nodes) else seq.rest
            seq.rest = list(rest[:num_rest])
            del seq.nodes[num_full:]
            self._move_tail(seq)
        seq.num_computed = num_tokens

    def _shorten(self, seq: OpenSequence, num_blocks: int) -> None:
        """Let go of the blocks from ``num_blocks`` on, last ones first."""
        for index in reversed(range(num_blocks, len(seq.tables[0]))):
            for group, table in enumerate(seq.tables):
                block = table.pop()
                if index >= seq.first[group]:
                    self._drop(seq, group, block)
            seq.view_tables = None
        seq.first = [min(first, num_blocks) for first in seq.first]
