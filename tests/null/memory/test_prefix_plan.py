# SPDX-License-Identifier: Apache-2.0
"""The prefix plan of a job: against brute force, and greedy <= exact <= every level."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from ziggurat.memory.prefix_plan import plan_prefixes

PROMPTS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9), min_size=1, max_size=7)
BLOCKS = st.sampled_from([1, 2, 4])


def shareable(prompt: list[int], block_size: int) -> list[int]:
    return prompt[: (len(prompt) - 1) // block_size * block_size]


def best_by_force(prompts: list[list[int]], block_size: int) -> int:
    """The most tokens that one level of sharing saves: every set of beginnings is tried, every prompt takes its longest."""
    parts = [shareable(prompt, block_size) for prompt in prompts]
    beginnings = {tuple(part[:end]) for part in parts for end in range(block_size, len(part) + 1, block_size)}
    # A beginning of one prompt saves nothing, so it is left out of the sets.
    shared = [b for b in beginnings if sum(tuple(part[: len(b)]) == b for part in parts) > 1]
    best = 0
    for count in range(min(len(shared), 4) + 1):
        for chosen in itertools.combinations(shared, count):
            taken = [max((len(b) for b in chosen if tuple(part[: len(b)]) == b), default=0) for part in parts]
            best = max(best, sum(taken) - sum(len(b) for b in chosen))
    return best


@given(PROMPTS, BLOCKS)
def test_every_prompt_is_in_one_group_and_shares_its_beginning(prompts: list[list[int]], block_size: int) -> None:
    for is_exact in (True, False):
        plan = plan_prefixes(prompts, block_size, is_exact=is_exact)
        assert sorted(index for group in plan.groups for index in group.members) == list(range(len(prompts)))
        for group in plan.groups:
            assert group.prefix_tokens % block_size == 0
            assert len({tuple(prompts[index][: group.prefix_tokens]) for index in group.members}) == 1
            assert all(group.prefix_tokens < len(prompts[index]) for index in group.members)


@settings(max_examples=150)
@given(PROMPTS, BLOCKS)
def test_bottom_up_is_at_most_the_optimum_and_that_at_most_every_level(
    prompts: list[list[int]], block_size: int
) -> None:
    exact = plan_prefixes(prompts, block_size, is_exact=True)
    greedy = plan_prefixes(prompts, block_size, is_exact=False)
    assert 0 <= greedy.saved_tokens <= exact.saved_tokens <= exact.multi_level_tokens
    assert exact.multi_level_tokens == greedy.multi_level_tokens


@settings(max_examples=60)
@given(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=6), min_size=1, max_size=5), st.sampled_from([1, 2]))
def test_the_exact_plan_is_the_optimum(prompts: list[list[int]], block_size: int) -> None:
    assert plan_prefixes(prompts, block_size, is_exact=True).saved_tokens == best_by_force(prompts, block_size)


@given(PROMPTS, BLOCKS)
def test_every_level_saves_what_a_set_of_blocks_saves(prompts: list[list[int]], block_size: int) -> None:
    parts = [shareable(prompt, block_size) for prompt in prompts]
    blocks = [tuple(part[:end]) for part in parts for end in range(block_size, len(part) + 1, block_size)]
    saved = (len(blocks) - len(set(blocks))) * block_size
    assert plan_prefixes(prompts, block_size).multi_level_tokens == saved


def test_two_equal_prompts_leave_a_token_to_compute() -> None:
    plan = plan_prefixes([[1, 2, 3, 4], [1, 2, 3, 4]], 2)
    assert plan.groups[0].prefix_tokens == 2 and plan.saved_tokens == 2


def test_a_beginning_that_ends_inside_a_block_is_cut_to_whole_blocks() -> None:
    plan = plan_prefixes([[1, 2, 3, 4, 9], [1, 2, 3, 5, 9]], 2)
    assert plan.groups[0].prefix_tokens == 2


def test_an_order_of_the_job_changes_no_saving() -> None:
    prompts = [[1, 1, 1, 5], [2, 2, 3], [1, 1, 1, 6], [2, 2, 4], [1, 1, 7]]
    assert plan_prefixes(prompts, 1).saved_tokens == plan_prefixes(prompts[::-1], 1).saved_tokens
