# SPDX-License-Identifier: Apache-2.0
"""One radix forest over blocks of tokens: which computed prefixes exist, and in which blocks they lie.

A node is one full block of tokens after a known prefix. Trees with different salts never meet::

    root ""          --- (t0 .. t15) --- (t16 .. t31) --- (t32 .. t47)
                                    `--- (t16'.. t31')
    root "tenant-b"  --- (t0 .. t15)

Children are found by their real token ids (a tuple as dictionary key: hash first, then comparison), so no two prefixes are ever
taken for one another. The forest holds names of blocks, never their bytes; whoever owns the blocks decides what may leave.
"""

from __future__ import annotations

import zlib
from array import array
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from hashlib import blake2b

from ziggurat.memory.kv import DROPPED

MAX_REMEMBERED_EVICTIONS = 4096
"""Evicted prefixes that are remembered (one integer each), only to say "evicted" when somebody asks for them again."""

Key = tuple[int, ...]


def root_hash(salt: str) -> int:
    """`PrefixNode.path_hash` of a salt's root."""
    return zlib.crc32(salt.encode())


def next_hash(path_hash: int, key: Key) -> int:
    """`PrefixNode.path_hash` of the child with that key."""
    return hash((path_hash, key))


def root_digest(salt: str) -> bytes:
    """`PrefixNode.digest` of a salt's root."""
    return blake2b(salt.encode(), digest_size=16).digest()


def next_digest(digest: bytes, key: Sequence[int]) -> bytes:
    """`PrefixNode.digest` of the child with that key. No two prefixes share one that anybody could find."""
    return blake2b(digest + array("q", key).tobytes(), digest_size=16).digest()


class PrefixNode:
    """One block of tokens after its parent's prefix.

    Attributes:
        key: the block's token ids; empty for a root.
        parent: None for a root, and for a node that has left the forest.
        blocks: block per group, `DROPPED` where that group's block is gone.
        num_pins: who needs the node itself (not its blocks) to stay: open sequences that continue here.
        is_offered: whether the eviction policy may choose it.
        path_hash: of the salt and all tokens up to here; for messages and for who leaves, never for equality.
        depth: blocks of the prefix before this one; of a root's children 0.
    """

    __slots__ = (
        "_digest",
        "blocks",
        "children",
        "depth",
        "is_offered",
        "key",
        "num_pins",
        "parent",
        "path_hash",
        "salt",
    )

    def __init__(self, salt: str, key: Key, parent: PrefixNode | None, blocks: list[int]) -> None:
        self.salt = salt
        self.key = key
        self.parent = parent
        self.children: dict[Key, PrefixNode] = {}
        self.blocks = blocks
        self.num_pins = 0
        self.is_offered = False
        self.path_hash: int = root_hash(salt) if parent is None else next_hash(parent.path_hash, key)
        self.depth: int = -1 if parent is None else parent.depth + 1
        self._digest: bytes | None = None

    @property
    def digest(self) -> bytes:
        """Stands for the salt and all tokens up to here where real tokens are not at hand (`digests`). Only while it is in the forest."""
        if self._digest is None:
            self._digest = root_digest(self.salt) if self.parent is None else next_digest(self.parent.digest, self.key)
        return self._digest

    @property
    def is_empty(self) -> bool:
        """Whether nothing needs the node: no block, no child, no pin."""
        return not self.children and not self.num_pins and all(block == DROPPED for block in self.blocks)


class PrefixForest:
    """Trees of prefixes, one per salt.

    Args:
        block_size: tokens per node.
        num_groups: blocks per node.
    """

    def __init__(self, block_size: int, num_groups: int) -> None:
        self.block_size = block_size
        self.num_groups = num_groups
        self._roots: dict[str, PrefixNode] = {}
        self._first_keys: dict[Key, int] = {}
        self._evicted: OrderedDict[int, None] = OrderedDict()

    def key(self, token_ids: Sequence[int], index: int) -> Key:
        """The token ids of block ``index``."""
        return tuple(token_ids[index * self.block_size : (index + 1) * self.block_size])

    def root(self, salt: str) -> PrefixNode:
        """The root of a salt's tree, made when it is not there. It goes again when it has no child and no pin."""
        node = self._roots.get(salt)
        if node is None:
            node = self._roots[salt] = PrefixNode(salt, (), None, [])
        return node

    def match(self, token_ids: Sequence[int], salt: str, max_blocks: int) -> list[PrefixNode]:
        """The nodes of the longest path that agrees with ``token_ids``, root excluded, at most ``max_blocks``. O(path)."""
        path: list[PrefixNode] = []
        node = self._roots.get(salt)
        while node is not None and len(path) < max_blocks:
            node = node.children.get(self.key(token_ids, len(path)))
            if node is not None:
                path.append(node)
        return path

    def insert(self, parent: PrefixNode, key: Key, blocks: Sequence[int]) -> PrefixNode:
        """A new node below ``parent``. The caller has looked: the key is not there yet."""
        assert len(key) == self.block_size and len(blocks) == self.num_groups and key not in parent.children
        node = PrefixNode(parent.salt, key, parent, list(blocks))
        parent.children[key] = node
        if parent.parent is None:
            self._first_keys[key] = self._first_keys.get(key, 0) + 1
        return node

    def pin(self, node: PrefixNode) -> None:
        """Keep the node, and with it the path to it, in the forest (its blocks may still go one by one)."""
        node.num_pins += 1

    def unpin(self, node: PrefixNode) -> None:
        """Undo one `pin`; what nothing needs any more leaves."""
        assert node.num_pins > 0, "unpinned more often than pinned"
        node.num_pins -= 1
        self.prune(node)

    def prune(self, node: PrefixNode) -> None:
        """Remove the node if nothing needs it, then its parent, and so on."""
        while node.is_empty:
            parent = node.parent
            if parent is None:
                self._roots.pop(node.salt)
                return
            self.evict(node)
            if parent.parent is None:
                return  # an empty root has gone with its last child
            node = parent

    def evict(self, node: PrefixNode) -> PrefixNode:
        """Remove one leaf and remember that it was there. Returns its former parent."""
        assert not node.children and not node.num_pins, "only an unpinned leaf can leave"
        self._evicted[node.path_hash] = None
        if len(self._evicted) > MAX_REMEMBERED_EVICTIONS:
            self._evicted.popitem(last=False)
        return self._unlink(node)

    def cut(self, node: PrefixNode) -> list[PrefixNode]:
        """Remove a node and everything below it; nothing of it may be pinned. Returns the removed nodes, parents first."""
        removed = [node]
        for each in removed:
            assert not each.num_pins, "a pinned node was cut"
            removed.extend(each.children.values())
        for each in reversed(removed):
            self._unlink(each)
        return removed

    def was_evicted(self, parent: PrefixNode | None, salt: str, key: Key) -> bool:
        """Whether a block like that left not long ago. By hash: good enough for a message, for nothing else."""
        path_hash = root_hash(salt) if parent is None else parent.path_hash
        return next_hash(path_hash, key) in self._evicted

    def has_first_block(self, key: Key) -> bool:
        """Whether any tree, whatever its salt, begins with this block."""
        return key in self._first_keys

    def nodes(self) -> Iterator[PrefixNode]:
        """All nodes, parents before children; roots are not nodes. O(forest): for audits."""
        stack = [child for root in self._roots.values() for child in root.children.values()]
        while stack:
            node = stack.pop()
            yield node
            stack.extend(node.children.values())

    def roots(self) -> Iterator[PrefixNode]:
        """The root of every salt."""
        yield from self._roots.values()

    def forget_evictions(self) -> None:
        """Forget what was evicted."""
        self._evicted.clear()

    def _unlink(self, node: PrefixNode) -> PrefixNode:
        parent = node.parent
        assert parent is not None and parent.children[node.key] is node
        del parent.children[node.key]
        if parent.parent is None:
            self._first_keys[node.key] -= 1
            if not self._first_keys[node.key]:
                del self._first_keys[node.key]
            if parent.is_empty:
                self._roots.pop(parent.salt)
        node.parent = None
        return parent
