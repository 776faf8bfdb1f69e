# SPDX-License-Identifier: Apache-2.0
"""The pools of all groups together with the prefix forest: taking, sharing, caching and evicting blocks.

Two kinds of groups differ in what a cached prefix of L tokens needs of them::

    full attention     every block of [0, L): a node without its block is useless, so a node leaves whole, and only leaves do
    window of w tokens the blocks of the last w - 1 tokens, [L - w + 1, L): any block that nobody holds may leave alone

Whoever holds a full-attention block of a node holds those of the whole path to it. So if nobody holds a node's, nobody holds
those below it, and every cached block can be had by evicting leaves: `num_available` of the pools is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ziggurat.memory.block_pool import BlockPool
from ziggurat.memory.eviction import LRU, CacheShape, Entry, EvictionPolicy, PolicyFactory
from ziggurat.memory.forest import Key, PrefixForest, PrefixNode
from ziggurat.memory.kv import DROPPED, CacheWatcher
from ziggurat.units import ceil_div


def first_visible_block(window: int | None, num_tokens: int, block_size: int) -> int:
    """The first block that the token after ``num_tokens`` computed ones can see: it sees itself and ``window - 1`` before it."""
    return 0 if window is None else max(0, num_tokens - window + 1) // block_size


def peak_window_blocks(window: int | None, num_tokens: int, chunk_tokens: int, block_size: int) -> int:
    """The most blocks that a sequence growing to ``num_tokens``, at most ``chunk_tokens`` at a time, holds at once.

    While the tokens ``[n, n + chunk)`` are computed, a window group holds the blocks of ``[n - window + 1, n + chunk)``.
    """
    most = ceil_div(num_tokens, block_size)
    if window is None or num_tokens <= window - 1 + chunk_tokens:
        return most
    # The span has a fixed length; what counts is where in a block it starts, at or after token 0 and early enough to end in time.
    span_tokens = window - 1 + chunk_tokens
    starts = range(min(num_tokens - span_tokens, block_size - 1) + 1)
    return max(ceil_div(start + span_tokens, block_size) for start in starts)


def _equal_cost(num_tokens: int) -> float:
    return 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Eviction:
    """Who leaves when blocks are wanted.

    Attributes:
        new_policy: makes a policy for a pool.
        recompute_cost: what the block after that many tokens costs to compute again, per byte and in any one unit; for policies that
            weigh it.
    """

    new_policy: PolicyFactory = LRU
    recompute_cost: Callable[[int], float] = _equal_cost


LRU_EVICTION = Eviction()
"""Least recently used, all blocks equal."""


class BlockCache:
    """Blocks of all groups, and which of them are kept for reuse.

    Attributes:
        watcher: told what becomes of cached prefixes, or None.

    Args:
        num_blocks: size of each group's pool.
        windows: each group's window in tokens, or None.
        eviction: who leaves; one policy decides about nodes (by their block in the first full group), and one per window group about
            that group's blocks.
    """

    def __init__(
        self,
        num_blocks: Sequence[int],
        windows: Sequence[int | None],
        block_size: int,
        eviction: Eviction,
    ) -> None:
        self.block_size = block_size
        self.windows = tuple(windows)
        self.pools = [BlockPool(total) for total in num_blocks]
        self.forest = PrefixForest(block_size, len(self.pools))
        self.num_evicted_blocks = 0
        self.watcher: CacheWatcher | None = None
        full = [group for group, window in enumerate(self.windows) if window is None]
        self.leader = full[0] if full else None
        self._recompute_cost = eviction.recompute_cost
        self._policies: list[EvictionPolicy | None] = [
            eviction.new_policy(CacheShape(capacity_blocks=num_blocks[group], seed=group))
            if window is not None or group == self.leader
            else None
            for group, window in enumerate(self.windows)
        ]

    def take(self, group: int, payer: str) -> int:
        """A block with one reference; evicts when nothing is free. The caller has checked that the group has one available."""
        self.make_room(group)
        return self.pools[group].take(payer)

    def make_room(self, group: int) -> None:
        """Evict, if no block of the group is free."""
        if not self.pools[group].num_free:
            self.num_evicted_blocks += self._evict(group)

    def share(self, group: int, block: int, *, is_hit: bool = False) -> None:
        """One more reference to a used or cached block; ``is_hit`` if somebody looked for its contents and found them."""
        policy = self._policies[group]
        if is_hit and policy is not None:
            policy.on_access(block)
        if self.pools[group].share(block):
            self._on_held(group, block, is_held=True)

    def drop(self, group: int, block: int) -> None:
        """One reference less. After the last one the block stays cached if it is in the forest."""
        pool = self.pools[group]
        if pool.drop(block) and pool.nodes[block] is not None:
            self._on_held(group, block, is_held=False)

    def find(self, token_ids: Sequence[int], salt: str, max_blocks: int) -> tuple[list[PrefixNode], int]:
        """(nodes that agree with the tokens, how many of them from the start can be reused). Takes nothing. O(path)."""
        path = self.forest.match(token_ids, salt, max_blocks)
        num_usable = 0
        # First block of the unbroken run of present blocks that ends at the current node, per window group.
        run_starts = [0] * len(self.pools)
        for index, node in enumerate(path):
            is_usable = True
            for group, window in enumerate(self.windows):
                if window is not None:
                    if node.blocks[group] == DROPPED:
                        run_starts[group] = index + 1
                    first = first_visible_block(window, (index + 1) * self.block_size, self.block_size)
                    is_usable = is_usable and run_starts[group] <= first
            if is_usable:
                num_usable = index + 1
        return path, num_usable

    def insert(self, parent: PrefixNode, key: Key, blocks: Sequence[int]) -> PrefixNode:
        """A new node that keeps these blocks. Their holder holds the parent's as well, so nothing that was offered changes."""
        node = self.forest.insert(parent, key, [DROPPED] * len(self.pools))
        for group, block in enumerate(blocks):
            self.fill(node, group, block)
        return node

    def fill(self, node: PrefixNode, group: int, block: int) -> None:
        """Give a node a block for a group in which it has none. Somebody holds the block now."""
        node.blocks[group] = block
        self.pools[group].attach(block, node)
        policy = self._policies[group]
        if policy is not None:
            cost = self._recompute_cost(node.depth * self.block_size)
            policy.on_insert(block, Entry(key=node.path_hash, cost=cost, depth=node.depth))

    def detach(self, group: int, block: int) -> None:
        """Take a block out of the forest, because its only holder is going to write into it.

        In a full group the longer prefixes that begin with it go too; nobody holds them, because nobody else holds this block.
        """
        node = self.pools[group].nodes[block]
        assert node is not None and self.pools[group].refs[block] == 1
        if self.windows[group] is not None:
            self._forget(node, group)
            self.forest.prune(node)
        else:
            for each in self.forest.cut(node):
                self._forget_all(each)

    def forget(self, path: Sequence[PrefixNode]) -> None:
        """Forget the blocks of a path, last ones first, that nobody holds and nothing longer needs."""
        for node in reversed(path):
            if self.leader is not None:
                if not node.is_offered:
                    return  # somebody holds it, or goes on from it, and so everything before it
                self._evict_leaf(node)
                continue
            for group, block in enumerate(node.blocks):
                if block != DROPPED and self.pools[group].refs[block] == 0:
                    self._forget(node, group)
            if node.parent is not None:
                self.forest.prune(node)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Blocks per group that there is address space for."""
        return tuple(pool.size for pool in self.pools)

    def resize(self, num_blocks: Sequence[int]) -> list[list[int]]:
        """Change the size of every pool; cached blocks leave where they must. Returns, per group, the blocks that retire."""
        for group, (pool, total) in enumerate(zip(self.pools, num_blocks, strict=True)):
            while pool.total - pool.num_free > total:
                self.num_evicted_blocks += self._evict(group)
        return [pool.resize(total) for pool, total in zip(self.pools, num_blocks, strict=True)]

    def evict_all(self) -> None:
        """Forget every cached block that nobody holds, as one event."""
        watcher = self.watcher
        self.watcher = None
        for group, policy in enumerate(self._policies):
            while policy is not None and policy.victim() is not None:
                self._evict(group)
        self.watcher = watcher
        if watcher is not None:
            watcher.on_drop()

    def _evict(self, group: int) -> int:
        """Free at least one cached block of a group. Returns how many blocks became free, in all groups."""
        if self.windows[group] is None:
            assert self.leader is not None
            group = self.leader
        policy = self._policies[group]
        assert policy is not None
        block = policy.victim()
        assert block is not None, f"group {group} counts cached blocks, but none is offered"
        node = self.pools[group].nodes[block]
        assert node is not None and self.pools[group].refs[block] == 0, f"block {block} of group {group} cannot leave"
        if self.windows[group] is not None:
            num_freed = self._forget(node, group)
            self.forest.prune(node)
            return num_freed
        if self.watcher is not None:
            self.watcher.on_evict(node)
        return self._evict_leaf(node)

    def _evict_leaf(self, node: PrefixNode) -> int:
        parent = self.forest.evict(node)
        num_freed = self._forget_all(node)
        self._offer(parent)
        return num_freed

    def _forget_all(self, node: PrefixNode) -> int:
        return sum(self._forget(node, group) for group, block in enumerate(node.blocks) if block != DROPPED)

    def _forget(self, node: PrefixNode, group: int) -> int:
        """The node lets go of its block in a group. Returns 1 if the block became free."""
        block = node.blocks[group]
        node.blocks[group] = DROPPED
        policy = self._policies[group]
        if policy is not None:
            policy.on_remove(block)
        return int(self.pools[group].detach(block))

    def _on_held(self, group: int, block: int, *, is_held: bool) -> None:
        """A block of the forest got its first holder, or lost its last one."""
        policy = self._policies[group]
        if policy is None:
            return
        if not is_held:
            policy.on_release(block)
        if self.windows[group] is not None:
            policy.on_evictable(block, not is_held)
        else:
            node = self.pools[group].nodes[block]
            assert node is not None
            self._offer(node)

    def _offer(self, node: PrefixNode) -> None:
        """Tell the policy when a node became a leaf that nobody holds, or is no longer one."""
        if self.leader is None or node.parent is None:
            return
        block = node.blocks[self.leader]
        is_evictable = not node.children and self.pools[self.leader].refs[block] == 0
        policy = self._policies[self.leader]
        if is_evictable != node.is_offered and policy is not None:
            node.is_offered = is_evictable
            policy.on_evictable(block, is_evictable)
