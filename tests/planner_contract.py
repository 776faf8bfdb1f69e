# SPDX-License-Identifier: Apache-2.0
"""What every batch planner owes, checked at each plan it makes while a core runs."""

from __future__ import annotations

from collections.abc import Iterable

from ziggurat.scheduling.protocol import BatchPlan, BatchPlanner, EngineState, SequenceView, TokenBudget


class CheckedPlanner:
    """Passes plans through and asserts the contract.

    Args:
        is_stall_free: every running sequence that needs one token gets it unless preempted (stall-free batching).
    """

    def __init__(self, planner: BatchPlanner, *, is_stall_free: bool) -> None:
        self._planner = planner
        self._is_stall_free = is_stall_free
        self.num_plans = self.num_preempting_plans = 0

    def plan(self, state: EngineState, budget: TokenBudget) -> BatchPlan:
        plan = self._planner.plan(state, budget)
        assert plan == self._planner.plan(state, budget), "same input, same plan"
        self.num_plans += 1
        self.num_preempting_plans += bool(plan.preempts)
        check_shape(plan, state)
        check_limits(plan, state, budget)
        check_order(plan, state)
        if state.running or state.waiting:
            assert plan.chunks, "something is there and nothing runs"
        if self._is_stall_free:
            chosen = {chunk.seq_id for chunk in plan.chunks}
            for seq in state.running:
                assert seq.num_uncomputed != 1 or seq.seq_id in chosen or seq.seq_id in plan.preempts, "a decode skips"
        return plan


def check_shape(plan: BatchPlan, state: EngineState) -> None:
    """Who may be named where, and how often."""
    running = {seq.seq_id: seq for seq in state.running}
    waiting = {seq.seq_id: seq for seq in state.waiting}
    chunks = {chunk.seq_id: chunk.num_tokens for chunk in plan.chunks}
    assert len(chunks) == len(plan.chunks), "one chunk per sequence"
    assert not (plan.preempts and plan.admits), "preempting and admitting at once"
    assert len(set(plan.preempts)) == len(plan.preempts) and running.keys() >= set(plan.preempts)
    assert len(set(plan.admits)) == len(plan.admits) and waiting.keys() >= set(plan.admits)
    assert set(plan.admits) <= chunks.keys(), "an admission without a chunk"
    assert all(seq.num_computed == 0 for seq in state.waiting)
    for seq_id, num_tokens in chunks.items():
        assert num_tokens >= 1, "an empty chunk"
        if seq_id in running:
            assert seq_id not in plan.preempts
            assert num_tokens <= running[seq_id].num_uncomputed
        else:
            assert seq_id in plan.admits
            assert num_tokens <= waiting[seq_id].num_tokens - state.kv.cached_tokens(seq_id)


def check_limits(plan: BatchPlan, state: EngineState, budget: TokenBudget) -> None:
    """Tokens, sequences and blocks."""
    running = {seq.seq_id: seq for seq in state.running}
    waiting = {seq.seq_id: seq for seq in state.waiting}
    assert sum(chunk.num_tokens for chunk in plan.chunks) <= budget.max_num_batched_tokens
    stay = [seq for seq_id, seq in running.items() if seq_id not in plan.preempts]
    assert sum(seq.num_slots for seq in (*stay, *(waiting[name] for name in plan.admits))) <= budget.max_num_seqs
    available = add_blocks([state.kv.free_blocks(), *(state.kv.held_blocks(seq_id) for seq_id in plan.preempts)])
    prices = [
        (state.kv.needed_to_admit if chunk.seq_id in plan.admits else state.kv.needed_blocks)(
            chunk.seq_id, chunk.num_tokens
        )
        for chunk in plan.chunks
    ]
    taken = add_blocks([(0,) * len(available), *prices])
    assert all(t <= a for t, a in zip(taken, available, strict=True)), f"plans {taken} blocks of {available}"


def check_order(plan: BatchPlan, state: EngineState) -> None:
    """First come, first served: admissions from the head, victims from the tail, never the oldest."""
    assert list(plan.admits) == [seq.seq_id for seq in state.waiting[: len(plan.admits)]]
    running = [seq.seq_id for seq in state.running]
    assert list(plan.preempts) == running[::-1][: len(plan.preempts)]
    assert not running or running[0] not in plan.preempts, "the oldest is preempted"
    assert is_sorted(state.running) and is_sorted(state.waiting)
    if state.running and state.waiting:
        assert order(state.running[-1]) < order(state.waiting[0])


def order(seq: SequenceView) -> tuple[int, int]:
    return seq.arrival, int(seq.seq_id.rpartition("/")[2])


def is_sorted(sequences: Iterable[SequenceView]) -> bool:
    places = [order(seq) for seq in sequences]
    return places == sorted(places)


def add_blocks(rows: list[tuple[int, ...]]) -> tuple[int, ...]:
    return tuple(sum(column) for column in zip(*rows, strict=True))
