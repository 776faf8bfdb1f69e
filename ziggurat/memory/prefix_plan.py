# SPDX-License-Identifier: Apache-2.0
"""Which prompts of a known job share which beginning: the global prefix plan of BatchLLM (arXiv 2412.03594).

The online forest (`ziggurat.memory.forest`) learns prefixes as they pass; here all prompts are known before the first token. They are
sorted, neighbours are compared, and a compressed tree falls out. Every inner node is a beginning that several prompts share. At run time
a request reuses *one* shared beginning, so the tree is flattened into groups: members of a group have the same chosen node, whose tokens
are computed once.

Lengths are in tokens and multiples of the block size, because only whole blocks are shared; at least one token of every prompt is left to
compute, because the first output needs its logits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

# Above this many (node, chosen ancestor) pairs the exact plan would take seconds, and the bottom-up pass plans instead.
MAX_EXACT_PAIRS = 2_000_000


@dataclass(slots=True)
class PlanNode:
    """A beginning of ``length_tokens`` tokens, shared by the prompts at ``[low, high)`` of the sorted order.

    Leaves are the prompts themselves: ``high == low + 1`` and no children.
    """

    length_tokens: int
    low: int
    high: int
    children: list[PlanNode] = field(default_factory=list)

    @property
    def num_leaves(self) -> int:
        """Prompts below."""
        return self.high - self.low

    @property
    def is_leaf(self) -> bool:
        """One prompt."""
        return not self.children


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixGroup:
    """Prompts that are computed after one shared beginning.

    Attributes:
        prefix_tokens: length of the beginning; 0 for a prompt that shares nothing.
        members: numbers of the prompts in the job, neighbours in sorted order next to each other.
    """

    prefix_tokens: int
    members: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixPlan:
    """Groups of a job, each prompt in exactly one, and what sharing saves.

    Attributes:
        total_tokens: of all prompts.
        saved_tokens: prompt tokens that are not computed because another member of the group did: sum of (members - 1) * prefix.
        multi_level_tokens: what sharing at every node of the tree would save; no plan with one level can save more.
    """

    groups: tuple[PrefixGroup, ...]
    total_tokens: int
    saved_tokens: int
    multi_level_tokens: int


def plan_prefixes(prompts: Sequence[Sequence[int]], block_size: int, *, is_exact: bool | None = None) -> PrefixPlan:
    """Groups for a job.

    Args:
        prompts: token ids of each prompt; none is empty.
        is_exact: the optimum of one level, or the publication's bottom-up pass; None takes the optimum where it costs little.

    O(n log n) comparisons of prompts, then O(nodes) for the pass, O(nodes * depth) for the optimum.
    """
    shareable = [(len(prompt) - 1) // block_size * block_size for prompt in prompts]
    arrays = [np.asarray(prompt[:length], dtype=">u4") for prompt, length in zip(prompts, shareable, strict=True)]
    # Big-endian bytes compare like the numbers do, at the speed of memcmp. Equal prompts keep the order of the job.
    keys = [array.tobytes() for array in arrays]
    order = sorted(range(len(prompts)), key=keys.__getitem__)
    root = build_tree([arrays[index] for index in order], block_size)
    if is_exact is None:
        is_exact = _num_pairs(root, MAX_EXACT_PAIRS) <= MAX_EXACT_PAIRS
    chosen = exact_choice(root) if is_exact else bottom_up_choice(root)
    groups = tuple(
        PrefixGroup(prefix_tokens=prefix_tokens, members=tuple(order[place] for place in places))
        for prefix_tokens, places in chosen
    )
    return PrefixPlan(
        groups=groups,
        total_tokens=sum(len(prompt) for prompt in prompts),
        saved_tokens=sum((len(group.members) - 1) * group.prefix_tokens for group in groups),
        multi_level_tokens=sum(
            (node.num_leaves - 1) * (node.length_tokens - parent_tokens)
            for node, parent_tokens in _walk(root)
            if not node.is_leaf
        ),
    )


def build_tree(arrays: Sequence[NDArray[np.uint32]], block_size: int) -> PlanNode:
    """The compressed tree over sorted token arrays, whose lengths are multiples of the block size. The root has length 0.

    A prompt that ends inside the tree is a leaf of its own below the node where it ends (a leaf without tokens).
    """
    root = PlanNode(0, 0, len(arrays))
    path = [root]
    for place, array in enumerate(arrays):
        common = _common_tokens(arrays[place - 1], array, block_size) if place else 0
        below = None
        while len(path) > 1 and (path[-1].length_tokens > common or path[-1].is_leaf):
            below = path.pop()
        if path[-1].length_tokens < common:
            # What was popped last hangs below a new node where this prompt and its neighbour part.
            assert below is not None
            inner = PlanNode(common, below.low, place + 1, [below])
            path[-1].children[-1] = inner
            path.append(inner)
        leaf = PlanNode(len(array), place, place + 1)
        path[-1].children.append(leaf)
        path.append(leaf)
    for node, _ in reversed(list(_walk(root))):
        if not node.is_leaf:
            node.high = node.children[-1].high
    return root


def _common_tokens(first: NDArray[np.uint32], second: NDArray[np.uint32], block_size: int) -> int:
    length = min(len(first), len(second))
    differing = np.flatnonzero(first[:length] != second[:length])
    common = int(differing[0]) if len(differing) else length
    return common // block_size * block_size


def _walk(root: PlanNode) -> Iterator[tuple[PlanNode, int]]:
    """(node, tokens of its parent) of every node but the root, parents first."""
    stack = [(child, 0) for child in reversed(root.children)]
    while stack:
        node, parent_tokens = stack.pop()
        yield node, parent_tokens
        stack.extend((child, node.length_tokens) for child in reversed(node.children))


def _num_pairs(root: PlanNode, limit: int) -> int:
    """Sum of depths of all inner nodes; stops counting above the limit."""
    total = 0
    stack = [(child, 1) for child in root.children]
    while stack and total <= limit:
        node, depth = stack.pop()
        total += depth
        stack.extend((child, depth + 1) for child in node.children if not child.is_leaf)
    return total


Choice = list[tuple[int, list[int]]]
"""(prefix tokens, places in sorted order) of each group."""


def exact_choice(root: PlanNode) -> Choice:
    """The one-level choice that saves most: V(leaf, p) = p, V(n, p) = max(sum V(c, p), sum V(c, P(n)) - P(n)), where p is the length
    of the nearest chosen node above and P(n) the node's own. Ties leave a node out."""
    chosen: set[int] = set()
    # Per inner node and per ancestor length that may be the chosen one: (value, whether the node is chosen), children first.
    tables: dict[int, dict[int, tuple[int, bool]]] = {}
    stack: list[tuple[PlanNode, tuple[int, ...], bool]] = [(root, (0,), False)]
    while stack:
        node, above, is_done = stack.pop()
        below = (*above, node.length_tokens) if node is not root else above
        if not is_done:
            stack.append((node, above, True))
            stack.extend((child, below, False) for child in node.children if not child.is_leaf)
            continue
        sums = {
            length: sum(length if child.is_leaf else tables[id(child)][length][0] for child in node.children)
            for length in below
        }
        taken = sums[node.length_tokens] - node.length_tokens
        tables[id(node)] = {
            length: (sums[length], False) if node is root or sums[length] >= taken else (taken, True)
            for length in above
        }
    pending = [(root, 0)]
    while pending:
        node, length = pending.pop()
        if tables[id(node)][length][1]:
            chosen.add(id(node))
            length = node.length_tokens
        pending.extend((child, length) for child in node.children if not child.is_leaf)
    return _collect(root, chosen)


def bottom_up_choice(root: PlanNode) -> Choice:
    """The publication's pass: children first, a node forks a child group out to its own level where that saves more than it costs.

    Forking a group of L prompts whose beginning is ``t`` tokens longer than the node's saves (L - 1) * t tokens and computes the
    tokens between the node and its parent once more. What is not forked becomes plain members of the node. The root has no tokens,
    so it forks everything.
    """
    groups: dict[int, Choice] = {}
    singles: dict[int, list[int]] = {}
    for node, parent_tokens in [*reversed(list(_walk(root))), (root, 0)]:
        if node.is_leaf and node is not root:
            continue
        forked: Choice = []
        members: list[int] = []
        own_tokens = node.length_tokens - parent_tokens
        for child in node.children:
            if child.is_leaf:
                members.append(child.low)
                continue
            members += singles.pop(id(child))
            for prefix_tokens, places in groups.pop(id(child)):
                gain = (len(places) - 1) * (prefix_tokens - node.length_tokens)
                if node is root or gain > own_tokens:
                    forked.append((prefix_tokens, places))
                else:
                    members += places
        if node is not root and len(members) > 1 and own_tokens > 0:
            forked.append((node.length_tokens, sorted(members)))
            members = []
        groups[id(node)], singles[id(node)] = forked, members
    found = [(prefix, sorted(places)) for prefix, places in groups[id(root)]]
    return sorted(found + [(0, [place]) for place in singles[id(root)]], key=lambda group: group[1][0])


def _collect(root: PlanNode, chosen: set[int]) -> Choice:
    """Every leaf goes to its nearest chosen node; leaves without one are groups of their own."""
    found: dict[int, tuple[int, list[int]]] = {}
    alone: Choice = []
    stack: list[tuple[PlanNode, PlanNode | None]] = [(root, None)]
    while stack:
        node, nearest = stack.pop()
        if node.is_leaf and node is not root:
            if nearest is None:
                alone.append((0, [node.low]))
            else:
                found.setdefault(id(nearest), (nearest.length_tokens, []))[1].append(node.low)
            continue
        nearest = node if id(node) in chosen else nearest
        stack.extend((child, nearest) for child in node.children)
    groups = [(tokens, sorted(places)) for tokens, places in found.values()]
    return sorted(groups + alone, key=lambda group: group[1][0])
