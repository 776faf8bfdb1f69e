# SPDX-License-Identifier: Apache-2.0
"""The contract suite over every registered planner, and what is special about each."""

from __future__ import annotations

import inspect
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.cores import drain, make_core, request
from tests.kv_check import HashingExecutor
from tests.planner_contract import CheckedPlanner
from tests.seam import make_script, replay
from tests.stores import small_store
from ziggurat.errors import ConfigError
from ziggurat.scheduling import planners
from ziggurat.scheduling.core import EngineCore
from ziggurat.scheduling.planners import PLANNERS, resolve
from ziggurat.scheduling.probe import StoreProbe
from ziggurat.scheduling.protocol import BatchPlan, Chunk, EngineState, SequenceView, TokenBudget

STALL_FREE = ("sarathi", "orca")
RESERVING = ("orca", "request-level")


def checked(name: str) -> CheckedPlanner:
    return CheckedPlanner(resolve(name), is_stall_free=name in STALL_FREE)


def test_all_planners_are_there_and_names_are_helped() -> None:
    assert {"sarathi", "prefill-priority", "orca", "request-level", "splitfuse"} <= set(PLANNERS)
    with pytest.raises(ConfigError, match="unknown batch planner 'saratti', did you mean 'sarathi'"):
        resolve("saratti")


@pytest.mark.parametrize("name", PLANNERS.names())
def test_a_planner_is_a_small_class(name: str) -> None:
    assert len(inspect.getsource(PLANNERS.get(name)).splitlines()) < 100


@pytest.mark.parametrize("name", PLANNERS.names())
def test_nothing_to_do_is_an_empty_plan(name: str) -> None:
    state = EngineState(running=[], waiting=[], kv=StoreProbe(small_store(4), {}), now_s=0.0)
    assert resolve(name).plan(state, TokenBudget(max_num_batched_tokens=4, max_num_seqs=2)) == BatchPlan()


@pytest.mark.parametrize("name", PLANNERS.names())
@settings(max_examples=15)
@given(
    seed=st.integers(0, 10_000),
    num_blocks=st.integers(24, 60),
    seqs=st.integers(1, 7),
    extra_tokens=st.integers(1, 30),
)
def test_contract(name: str, seed: int, num_blocks: int, seqs: int, extra_tokens: int) -> None:
    """Limits, order, determinism, progress at every step of scripts with shared beginnings, forks, aborts and a small pool."""
    result = replay(
        make_script(seed, num_requests=8),
        HashingExecutor,
        planner=checked(name),
        make_store=lambda: small_store(num_blocks),
        budget=TokenBudget(max_num_batched_tokens=seqs + extra_tokens, max_num_seqs=seqs),
    )
    assert result.core.counters.stalls == 0


@pytest.mark.parametrize("name", sorted(set(PLANNERS.names()) - set(RESERVING)))
def test_preemption_is_really_exercised(name: str) -> None:
    planner = checked(name)
    replay(make_script(3), HashingExecutor, planner=planner)
    assert planner.num_preempting_plans > 0


@pytest.mark.parametrize("name", RESERVING)
@settings(max_examples=10)
@given(seed=st.integers(0, 10_000))
def test_who_sets_the_longest_text_aside_never_preempts(name: str, seed: int) -> None:
    script = make_script(seed)
    adds = {
        step: [replace(each, params=replace(each.params, n=1)) for each in requests]
        for step, requests in script.adds.items()
    }
    planner = checked(name)
    replay(replace(script, adds=adds, finishes={}), HashingExecutor, planner=planner)
    assert planner.num_preempting_plans == 0


@pytest.mark.parametrize("name", PLANNERS.names())
def test_a_stream_of_small_requests_does_not_starve_a_large_one(name: str) -> None:
    core = make_core(num_blocks=12, planner=checked(name), max_model_len=48)
    core.add(request("early", num_prompt=6, max_tokens=12), 0.0)
    core.step(0.0)
    core.add(request("large", num_prompt=40, max_tokens=8), 0.0)
    ended: list[str] = []
    for step in range(100):
        core.add(request(f"small{step}", num_prompt=2, max_tokens=2), 0.0)
        ended += [entry.request_id for entry in core.step(0.0).finished]
        if "large" in ended:
            break
    assert "large" in ended
    drain(core)


def test_sarathi_runs_decodes_and_a_chunk_together() -> None:
    core = make_core(planner=resolve("sarathi"), tokens=8)
    core.add(request("a", num_prompt=2, max_tokens=9), 0.0)
    core.step(0.0)
    core.add(request("b", num_prompt=20, max_tokens=2), 0.0)
    sizes = [(output.num_batched_tokens, [new.seq_id for new in output.tokens]) for output in drain(core)]
    assert sizes[:4] == [(8, ["a/0"]), (8, ["a/0"]), (7, ["a/0", "b/0"]), (2, ["a/0", "b/0"])]


def test_sarathi_admits_whole_prompts_against_the_pool_and_its_watermark() -> None:
    """Blocks of 4: a's prompt takes 5, b would take 4 of the 5 that are left less the watermark of 1; c may not overtake."""
    core = make_core(num_blocks=10, tokens=30)
    core.add(request("a", num_prompt=20, max_tokens=1), 0.0)
    core.add(request("b", num_prompt=17, max_tokens=1), 0.0)
    core.add(request("c", num_prompt=2, max_tokens=1), 0.0)
    assert [entry.seq_id for entry in core.step(0.0).admitted] == ["a/0"]
    assert [entry.seq_id for entry in core.step(0.0).admitted] == ["b/0", "c/0"]


def test_sarathi_admits_nobody_behind_an_unfinished_prompt() -> None:
    """b's blocks are there, but a was promised the rest of its prompt first."""
    core = make_core(num_blocks=10, tokens=8, max_model_len=40)
    core.add(request("a", num_prompt=30, max_tokens=2), 0.0)
    core.add(request("b", num_prompt=2, max_tokens=2), 0.0)
    admitted = [[entry.seq_id for entry in core.step(0.0).admitted] for _ in range(4)]
    assert admitted == [["a/0"], [], [], ["b/0"]]
    drain(core)
    assert core.counters.preemptions == 0


@pytest.mark.parametrize("name", PLANNERS.names())
def test_forks_to_come_are_part_of_the_price(name: str) -> None:
    """Of 10 blocks one is a's and one the watermark. b's prompt takes 7 and each of its three forks one more."""
    core = make_core(planner=resolve(name), num_blocks=10, tokens=30, seqs=8)
    core.add(request("a", num_prompt=2, max_tokens=2), 0.0)
    core.step(0.0)
    core.add(request("b", num_prompt=28, max_tokens=2, n=4), 0.0)
    assert core.step(0.0).admitted == ()
    drain(core)


@pytest.mark.parametrize("name", PLANNERS.names())
def test_a_window_is_priced_by_its_peak_not_by_the_prompt(name: str) -> None:
    """A window group of 12 blocks never holds a prompt of 60 tokens at once, and need not: with chunks of 8 it holds 5."""
    store = small_store(40, window=(10, 12), max_chunk_tokens=8)
    core = EngineCore(
        store,
        checked(name),
        HashingExecutor(),
        TokenBudget(max_num_batched_tokens=8, max_num_seqs=4),
        max_model_len=70,
        block_bytes=(1, 1),
    )
    core.add(request("a", num_prompt=2, max_tokens=30), 0.0)
    core.step(0.0)
    core.add(request("b", num_prompt=60, max_tokens=2), 0.0)
    ends = [entry.seq_id for output in drain(core) for entry in output.finished]
    assert ends == (["a/0", "b/0"] if name == "request-level" else ["b/0", "a/0"])
    assert core.counters.preemptions == 0


class NoRoom:
    """A pool of which nothing is left; each running sequence holds two blocks and needs one per token."""

    def free_blocks(self) -> tuple[int, ...]:
        return (0,)

    def total_blocks(self) -> tuple[int, ...]:
        return (6,)

    def needed_blocks(self, seq_id: str, num_tokens: int) -> tuple[int, ...]:
        return (num_tokens,)

    needed_to_admit = needed_blocks

    def peak_blocks(self, num_tokens: int) -> tuple[int, ...]:
        return (num_tokens,)

    def cached_tokens(self, seq_id: str) -> int:
        return 0

    def held_blocks(self, seq_id: str) -> tuple[int, ...]:
        return (2,)


@pytest.mark.parametrize("name", PLANNERS.names())
def test_unfinished_prompts_that_block_each_other_give_way_to_the_oldest(name: str) -> None:
    running = [
        SequenceView(
            seq_id=f"r{index}/0",
            num_prompt_tokens=9,
            num_tokens=9,
            num_computed=2,
            priority=0,
            arrival=index,
            arrival_s=0.0,
        )
        for index in range(3)
    ]
    state = EngineState(running=running, waiting=[], kv=NoRoom(), now_s=0.0)
    plan = resolve(name).plan(state, TokenBudget(max_num_batched_tokens=8, max_num_seqs=4))
    assert plan == BatchPlan(preempts=("r2/0",), chunks=(Chunk(seq_id="r0/0", num_tokens=2),))
    alone = EngineState(running=running[:1], waiting=[], kv=NoRoom(), now_s=0.0)
    assert resolve(name).plan(alone, TokenBudget(max_num_batched_tokens=8, max_num_seqs=4)) == BatchPlan()


def test_prefill_priority_stalls_decodes_while_prompts_wait() -> None:
    core = make_core(planner=resolve("prefill-priority"), tokens=8)
    core.add(request("a", num_prompt=2, max_tokens=5), 0.0)
    core.step(0.0)
    core.add(request("b", num_prompt=20, max_tokens=2), 0.0)
    core.add(request("c", num_prompt=3, max_tokens=2), 0.0)
    core.add(request("d", num_prompt=3, max_tokens=2), 0.0)
    batches = [(output.num_batched_tokens, [new.seq_id for new in output.tokens]) for output in drain(core)]
    # b is longer than the budget: three chunks alone; then c and d together; decodes last.
    assert batches[:5] == [(8, []), (8, []), (4, ["b/0"]), (6, ["c/0", "d/0"]), (4, ["a/0", "b/0", "c/0", "d/0"])]


def test_prefill_priority_never_mixes() -> None:
    for batch in record_batches("prefill-priority"):
        assert len({size > 1 for size in batch}) == 1


def record_batches(name: str) -> list[list[int]]:
    """Chunk sizes per step of prompts of at least two tokens, in a pool that is large enough."""
    core = make_core(planner=planners.resolve(name), num_blocks=64, tokens=8)
    executor = HashingExecutor()
    sizes: list[list[int]] = []

    class Recording:
        def run(self, batch):  # type: ignore[no-untyped-def]
            sizes.append([len(item.token_ids) for item in batch.items])
            return executor.run(batch)

    core.executor = Recording()
    for index in range(6):
        core.add(request(f"r{index}", num_prompt=2 + index, max_tokens=4), 0.0)
    drain(core)
    return sizes


def steps_of(name: str, *, tokens: int = 8, num_blocks: int = 16) -> list[tuple[int, list[str]]]:
    """Tokens and new tokens' owners per step: a text of five tokens runs, then a prompt of 5 and one of 20 come."""
    core = make_core(planner=checked(name), tokens=tokens, num_blocks=num_blocks)
    core.add(request("a", num_prompt=2, max_tokens=5), 0.0)
    core.step(0.0)
    core.add(request("b", num_prompt=5, max_tokens=2), 0.0)
    core.add(request("c", num_prompt=20, max_tokens=2), 0.0)
    return [(output.num_batched_tokens, [new.seq_id for new in output.tokens]) for output in drain(core)]


def test_request_level_serves_one_batch_to_its_end() -> None:
    assert steps_of("request-level", tokens=30) == [
        *[(1, ["a/0"])] * 4,
        (25, ["b/0", "c/0"]),
        (2, ["b/0", "c/0"]),
    ]


def test_orca_runs_whole_prompts_beside_decodes() -> None:
    assert steps_of("orca", tokens=22)[:3] == [(6, ["a/0", "b/0"]), (22, ["a/0", "b/0", "c/0"]), (2, ["a/0", "c/0"])]


def test_orca_sets_the_longest_text_aside() -> None:
    """Blocks of 4, 10 of them: a may grow to 23 tokens, 6 blocks; b's 16 would need 4 more, c waits although it is small."""
    core = make_core(planner=checked("orca"), num_blocks=10, tokens=30)
    core.add(request("a", num_prompt=4, max_tokens=20), 0.0)
    core.add(request("b", num_prompt=4, max_tokens=14), 0.0)
    core.add(request("c", num_prompt=2, max_tokens=1), 0.0)
    assert [entry.seq_id for entry in core.step(0.0).admitted] == ["a/0"]
    drain(core)


def test_splitfuse_fills_every_step_to_the_budget() -> None:
    """b is fused with a decode and cut short by nobody; the beginning of c fills the step, its rest stands at the front."""
    steps = steps_of("splitfuse")
    assert steps == [(8, ["a/0", "b/0"]), (8, ["a/0", "b/0"]), (8, ["a/0"]), (6, ["a/0", "c/0"]), (1, ["c/0"])]


def test_splitfuse_starts_no_prompt_that_the_pool_cannot_hold_whole() -> None:
    """10 blocks, no watermark: a holds 5, so b with 5 starts and c with 6 would not."""
    core = make_core(planner=checked("splitfuse"), num_blocks=10, tokens=20)
    core.add(request("a", num_prompt=19, max_tokens=2), 0.0)
    core.add(request("b", num_prompt=21, max_tokens=1), 0.0)
    assert [entry.seq_id for entry in core.step(0.0).admitted] == ["a/0"]
    drain(core)


def test_a_decode_without_a_block_skips_under_splitfuse_and_preempts_under_sarathi() -> None:
    running = [
        SequenceView(
            seq_id=f"r{index}/0",
            num_prompt_tokens=4,
            num_tokens=5,
            num_computed=4,
            priority=0,
            arrival=index,
            arrival_s=0.0,
        )
        for index in range(2)
    ]

    class OneBlock(NoRoom):
        def free_blocks(self) -> tuple[int, ...]:
            return (1,)

    state = EngineState(running=running, waiting=[], kv=OneBlock(), now_s=0.0)
    budget = TokenBudget(max_num_batched_tokens=8, max_num_seqs=4)
    first = Chunk(seq_id="r0/0", num_tokens=1)
    assert resolve("splitfuse").plan(state, budget) == BatchPlan(chunks=(first,))
    assert resolve("sarathi").plan(state, budget) == BatchPlan(preempts=("r1/0",), chunks=(first,))
