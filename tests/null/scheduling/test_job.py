# SPDX-License-Identifier: Apache-2.0
"""Jobs: the plan has every item once, and the feed starts leaders first, holds beginnings while they are needed, and ends."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from ziggurat.scheduling.job import JobFeed, JobItem, plan_job

BLOCK_SIZE = 2
ITEMS = st.lists(
    st.builds(
        JobItem,
        prompt_ids=st.lists(st.integers(0, 1), min_size=1, max_size=9),
        output_tokens=st.integers(1, 6),
        share_key=st.sampled_from(["", "a"]),
        shares=st.sampled_from([True, True, False]),
    ),
    min_size=1,
    max_size=12,
)


@given(ITEMS)
def test_every_item_is_in_one_group_of_its_own_key(items: list[JobItem]) -> None:
    plan = plan_job(items, BLOCK_SIZE)
    assert sorted(index for group in plan.groups for index in group.members) == list(range(len(items)))
    for group in plan.groups:
        assert len({(items[index].share_key, items[index].shares) for index in group.members}) == 1
        assert group.prefix_tokens == 0 or all(items[index].shares for index in group.members)
    assert plan.prompt_tokens == sum(len(item.prompt_ids) for item in items)
    assert 0 <= plan.saved_tokens <= plan.multi_level_tokens < max(plan.prompt_tokens, 1)


def test_long_texts_of_short_prompts_come_first() -> None:
    items = [
        JobItem(prompt_ids=[1] * 100, output_tokens=1),
        JobItem(prompt_ids=[2] * 10, output_tokens=100),
        JobItem(prompt_ids=[3] * 10, output_tokens=10),
    ]
    assert [group.members for group in plan_job(items, BLOCK_SIZE).groups] == [(1,), (2,), (0,)]


@settings(max_examples=150)
@given(ITEMS, st.integers(0, 2**32 - 1), st.integers(0, 12), st.sets(st.integers(0, 11)))
def test_a_feed_runs_everything_once(items: list[JobItem], seed: int, slack: int, done: set[int]) -> None:
    rng = random.Random(seed)
    plan = plan_job(items, BLOCK_SIZE)
    is_done = frozenset(done & set(range(len(items))))
    peaks = [(len(item.prompt_ids) + item.output_tokens) // BLOCK_SIZE + 1 for item in items]
    total = max(peaks) + slack
    feed = JobFeed(plan, peak_blocks=peaks, total_blocks=total, block_size=BLOCK_SIZE, is_done=is_done)
    groups = {index: group for group in plan.groups for index in group.members}
    running: list[int] = []
    begun: set[int] = set()
    submitted: list[int] = []
    held: dict[int, int] = {}
    ready: set[int] = set()
    while not feed.is_finished:
        index = feed.next()
        if index is not None:
            group = groups[index]
            siblings = [each for each in running if groups[each] is group]
            assert group.prefix_tokens == 0 or not siblings or id(group) in ready, "a member before its beginning"
            running.append(index)
            submitted.append(index)
            continue
        assert running, "nothing runs, nothing comes, and the job has not ended"
        index = rng.choice(running)
        if index not in begun and rng.random() < 0.7:
            begun.add(index)
            hold = feed.on_prompt_computed(index)
            if hold is not None:
                number, prefix_tokens = hold
                assert number not in held and prefix_tokens == groups[index].prefix_tokens > 0
                held[number] = prefix_tokens // BLOCK_SIZE
                ready.add(id(groups[index]))
            continue
        running.remove(index)
        ended = feed.on_end(index)
        if ended is not None:
            held.pop(ended, None)
        # Besides what is held, the largest item fits: it can always go on alone. A single group needs no such room.
        assert len(held) <= 1 or sum(held.values()) + max(peaks) <= total
    assert sorted(submitted) == sorted(set(range(len(items))) - is_done)
    assert not held and not running


def test_members_follow_another_leader_when_the_first_one_fails() -> None:
    items = [JobItem(prompt_ids=[1, 2, 3, 4, number]) for number in range(3)]
    feed = JobFeed(plan_job(items, 2), peak_blocks=[4, 4, 4], total_blocks=16, block_size=2)
    first = feed.next()
    assert first is not None and feed.next() is None
    assert feed.on_end(first) is None
    second = feed.next()
    assert second is not None and second != first and feed.next() is None
    assert feed.on_prompt_computed(second) == (0, 4)
    third = feed.next()
    assert third is not None and feed.on_end(second) is None and feed.on_end(third) == 0
    assert feed.is_finished
