# SPDX-License-Identifier: Apache-2.0
"""One group's blocks as numbers: who holds how many references, what is cached, what is free.

A block is in exactly one of these states::

    [0, frontier)      used    some sequence holds a reference
                       cached  nobody does, but a forest node keeps it for reuse
                       free    on the free list
                       retired out of circulation; its pages are given back
    [frontier, ..)     free    never used: no memory was touched for it, and nothing is stored about it
"""

from __future__ import annotations

from ziggurat.memory.forest import PrefixNode


class BlockPool:
    """Reference counts and the free list of one group. A pool costs nothing until its blocks are taken.

    Attributes:
        total: blocks in circulation.
        size: blocks that there is address space for; ``total`` may change up to it.
        retired: blocks out of circulation that were used once.
        refs: references per block below the frontier.
        nodes: the forest node that keeps the block, or None.
        payers: id of the sequence whose lease the block's bytes are in, or None for the shared one.
        num_cached: blocks that only a node keeps.
        num_charged: blocks with a payer.
    """

    def __init__(self, total: int) -> None:
        assert total >= 0, f"a pool of {total} blocks"
        self.total = self.size = total
        self.retired: list[int] = []
        self.refs: list[int] = []
        self.nodes: list[PrefixNode | None] = []
        self.payers: list[str | None] = []
        self.free_list: list[int] = []
        self.num_cached = 0
        self.num_charged = 0

    @property
    def num_free(self) -> int:
        """Blocks that hold nothing."""
        return self.num_unused + len(self.free_list)

    @property
    def num_available(self) -> int:
        """Blocks that can be had: free, or cached and therefore evictable."""
        return self.num_free + self.num_cached

    @property
    def num_shared(self) -> int:
        """Blocks in use or cached whose bytes no single sequence pays for."""
        return self.total - self.num_free - self.num_charged

    def resize(self, total: int) -> list[int]:
        """Change how many blocks are in circulation; what is used or cached now must fit. Returns the blocks that retire, whose pages
        can be given back; blocks that were never used have none."""
        assert self.total - self.num_free <= total <= self.size, f"{total} blocks do not hold what is there"
        while self.retired and self.total < total:
            self.free_list.append(self.retired.pop())
            self.total += 1
        # Never used blocks go first and come last: they cost nothing.
        num_retired = max(0, self.total - total - self.num_unused)
        retiring = self.free_list[:num_retired]
        del self.free_list[:num_retired]
        self.retired += retiring
        self.total = total
        return retiring

    @property
    def num_unused(self) -> int:
        """Blocks in circulation that were never used."""
        return self.total - len(self.refs) + len(self.retired)

    def is_free(self, block: int) -> bool:
        """Whether a block that was used once is on the free list."""
        return (
            block < len(self.refs) and not self.refs[block] and self.nodes[block] is None and block not in self.retired
        )

    def take(self, payer: str, wanted: int | None = None) -> int:
        """A free block with one reference: ``wanted`` if given, else the one freed last (its pages are warm), else the first never used
        one."""
        assert self.num_free > 0, "no free block; the caller should have evicted"
        if not self.free_list:
            self.begin_block()
        if wanted is None:
            block = self.free_list.pop()
        else:
            block = wanted
            self.free_list.remove(block)
        self.refs[block] = 1
        self.payers[block] = payer
        self.num_charged += 1
        return block

    def begin_block(self) -> int:
        """Put the first never used block on the free list."""
        assert self.num_unused > 0, "every block was used"
        self.refs.append(0)
        self.nodes.append(None)
        self.payers.append(None)
        self.free_list.append(len(self.refs) - 1)
        return len(self.refs) - 1

    def share(self, block: int) -> bool:
        """One more reference to a used or cached block. Returns whether it was cached."""
        self.refs[block] += 1
        if self.refs[block] > 1:
            return False
        assert self.nodes[block] is not None, f"block {block} is free and cannot be shared"
        self.num_cached -= 1
        return True

    def drop(self, block: int) -> bool:
        """One reference less. Returns whether it was the last; the block is then cached if a node keeps it, and free if not."""
        assert self.refs[block] > 0, f"block {block} is held by nobody"
        self.refs[block] -= 1
        if self.refs[block]:
            return False
        if self.nodes[block] is None:
            self._free(block)
        else:
            self.num_cached += 1
        return True

    def discharge(self, block: int) -> None:
        """The payer pays no more."""
        self.payers[block] = None
        self.num_charged -= 1

    def attach(self, block: int, node: PrefixNode) -> None:
        """A forest node keeps the block from now on. Somebody holds it at this moment."""
        assert self.refs[block] > 0 and self.nodes[block] is None, f"block {block} cannot enter the forest"
        self.nodes[block] = node

    def detach(self, block: int) -> bool:
        """No node keeps the block any more. Returns whether it became free."""
        assert self.nodes[block] is not None, f"block {block} is not in the forest"
        self.nodes[block] = None
        if self.refs[block]:
            return False
        self.num_cached -= 1
        self._free(block)
        return True

    def _free(self, block: int) -> None:
        assert self.payers[block] is None, f"block {block} is free but {self.payers[block]} pays for it"
        self.free_list.append(block)
