# SPDX-License-Identifier: Apache-2.0
"""A job whose requests are all known: in which order they go to the engine, and when a shared beginning comes and goes.

BatchLLM (arXiv 2412.03594): requests that share a beginning form a group (`ziggurat.memory.prefix_plan`). The first of a group, its
leader, computes the beginning; the others follow once it is there, back to back; it is given up with the last of them. Groups that
generate much for each prompt token come first, so that later prompts fill the steps of long texts.

Everything here is pure: the caller says what happened, and is told what to do next.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from ziggurat.memory.prefix_plan import PrefixGroup, PrefixPlan, plan_prefixes


@dataclass(frozen=True, slots=True, kw_only=True)
class JobItem:
    """One request of a job.

    Attributes:
        output_tokens: how long its text is expected to be, over all its continuations; at least 1.
        limit_tokens: how long one continuation may become; None is as long as the context.
        share_key: items with different keys share nothing (cache salt, adapter).
        shares: False for a request that takes nothing from the prefix cache.
    """

    prompt_ids: Sequence[int]
    output_tokens: int = 1
    limit_tokens: int | None = None
    share_key: str = ""
    shares: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class JobPlan:
    """The groups of a job in the order in which they run, each item in exactly one.

    Attributes:
        prompt_tokens: of all items.
        saved_tokens: prompt tokens that sharing one beginning per item saves.
        multi_level_tokens: what sharing every common beginning would save; a bound, not a plan.
    """

    groups: tuple[PrefixGroup, ...]
    prompt_tokens: int
    saved_tokens: int
    multi_level_tokens: int


def plan_job(items: Sequence[JobItem], block_size: int) -> JobPlan:
    """Group a job by shared beginnings and order the groups by decode tokens per prompt token that is computed, most first.

    Ties, and everything within a group, keep the order of the plan: by tokens, so that neighbours resemble each other.
    """
    by_key: dict[tuple[str, bool], list[int]] = {}
    for index, item in enumerate(items):
        by_key.setdefault((item.share_key, item.shares), []).append(index)
    groups: list[PrefixGroup] = []
    plans: list[PrefixPlan] = []
    for (_, shares), members in by_key.items():
        if not shares:
            groups += [PrefixGroup(prefix_tokens=0, members=(index,)) for index in members]
            continue
        plan = plan_prefixes([items[index].prompt_ids for index in members], block_size)
        plans.append(plan)
        groups += [
            PrefixGroup(prefix_tokens=group.prefix_tokens, members=tuple(members[place] for place in group.members))
            for group in plan.groups
        ]
    return JobPlan(
        groups=tuple(sorted(groups, key=lambda group: -_decode_ratio(group, items))),
        prompt_tokens=sum(len(item.prompt_ids) for item in items),
        saved_tokens=sum(plan.saved_tokens for plan in plans),
        multi_level_tokens=sum(plan.multi_level_tokens for plan in plans),
    )


def _decode_ratio(group: PrefixGroup, items: Sequence[JobItem]) -> float:
    decode = sum(items[index].output_tokens for index in group.members)
    own = sum(len(items[index].prompt_ids) - group.prefix_tokens for index in group.members)
    return decode / max(own + group.prefix_tokens, 1)


@dataclass(slots=True)
class _OpenGroup:
    """A group that has begun.

    Attributes:
        waiting: members that have not been submitted, next first.
        running: members that were submitted and have not ended.
        is_ready: the beginning has been computed and is held; members may follow the leader.
    """

    number: int
    group: PrefixGroup
    waiting: deque[int]
    running: set[int] = field(default_factory=set)
    is_ready: bool = False


class JobFeed:
    """What to submit next, and which beginnings to hold and to let go. The caller carries it out.

    A beginning is held outside of any request, so groups open only while their beginnings and the largest item of the job fit the pool
    together: whatever runs can then always go on alone. With one group open that is so by itself.

    Args:
        peak_blocks: of each item of the job, the most blocks of the tightest pool that it ever holds.
        total_blocks: size of that pool.
        block_size: tokens per block.
        is_done: numbers of items that need not run (they ended before a restart).
    """

    def __init__(
        self,
        plan: JobPlan,
        *,
        peak_blocks: Sequence[int],
        total_blocks: int,
        block_size: int,
        is_done: frozenset[int] = frozenset(),
    ) -> None:
        self._block_size = block_size
        self._spare_blocks = total_blocks - max(peak_blocks, default=0)
        self._groups: deque[_OpenGroup] = deque()
        for number, group in enumerate(plan.groups):
            waiting = deque(index for index in group.members if index not in is_done)
            if waiting:
                self._groups.append(_OpenGroup(number, group, waiting))
        self._open: dict[int, _OpenGroup] = {}
        self._group_of: dict[int, _OpenGroup] = {}
        self._held_blocks = 0

    @property
    def is_finished(self) -> bool:
        """Every item has ended."""
        return not self._groups and not self._open

    def next(self) -> int | None:
        """The item to submit next; None while all that is open waits for its beginning, or has been submitted.

        Members of open groups go before new groups.
        """
        for group in self._open.values():
            if group.waiting and (group.is_ready or not group.running):
                return self._submit(group)
        if not self._groups:
            return None
        blocks = self._blocks(self._groups[0])
        if self._open and self._held_blocks + blocks > self._spare_blocks:
            return None
        group = self._groups.popleft()
        self._open[group.number] = group
        self._held_blocks += blocks
        # What nobody shares, or nobody is left to share, needs no leader.
        group.is_ready = group.group.prefix_tokens == 0 or len(group.waiting) == 1
        return self._submit(group)

    def on_prompt_computed(self, index: int) -> tuple[int, int] | None:
        """An item has its first token. Returns (number of the group, tokens of the beginning) if it was the leader: hold them now."""
        group = self._group_of.get(index)
        if group is None or group.is_ready:
            return None
        group.is_ready = True
        return group.number, group.group.prefix_tokens

    def on_end(self, index: int) -> int | None:
        """An item has ended, in whatever way. Returns the number of its group if it was the last: let go of its beginning."""
        group = self._group_of.pop(index)
        group.running.remove(index)
        if group.running or group.waiting:
            return None
        del self._open[group.number]
        self._held_blocks -= self._blocks(group)
        return group.number

    def _submit(self, group: _OpenGroup) -> int:
        index = group.waiting.popleft()
        group.running.add(index)
        self._group_of[index] = group
        return index

    def _blocks(self, group: _OpenGroup) -> int:
        return group.group.prefix_tokens // self._block_size
