# SPDX-License-Identifier: Apache-2.0
"""EngineCore when executors fail and planners lie, and what it shows of itself."""

from __future__ import annotations

import pytest

from tests.cores import drain, make_core, request
from ziggurat.scheduling.null import NullExecutor
from ziggurat.scheduling.protocol import Batch, BatchPlan, Chunk, EngineState, StepResult, TokenBudget


class Breaks:
    """Fails in given runs, otherwise the null executor."""

    def __init__(self, *runs: int, result: StepResult | None = None) -> None:
        self._runs, self._count, self._result = runs, 0, result
        self._null = NullExecutor()

    def run(self, batch: Batch) -> StepResult:
        self._count += 1
        if self._count in self._runs:
            if self._result is not None:
                return self._result
            raise MemoryError("no more")
        return self._null.run(batch)


@pytest.mark.parametrize("result", [None, StepResult(tokens={})])
def test_a_failing_step_ends_its_sequences_and_the_rest_goes_on(result: StepResult | None) -> None:
    core = make_core(executor=Breaks(2, result=result), seqs=3)
    core.add(request("a", n=2, max_tokens=6), 0.0)
    core.step(0.0)
    core.abort("a")
    core.add(request("b", num_prompt=4, n=2), 0.0)
    core.add(request("c", max_tokens=3), 0.0)
    core.add(request("d", max_tokens=3), 0.0)
    output = core.step(1.0)
    assert output.error is not None
    assert "step 1 failed" in str(output.error)
    assert [(e.seq_id, e.reason) for e in output.finished] == [("b/0", "error"), ("b/1", "error"), ("c/0", "error")]
    assert all(entry.error for entry in output.finished)
    assert core.store.stats()[0].used == 0
    assert [(e.seq_id, e.reason) for o in drain(core) for e in o.finished] == [("d/0", "length")]
    assert core.counters.failed_steps == 1


class Poisons(NullExecutor):
    """Has no token for the named sequences."""

    def __init__(self, *seq_ids: str) -> None:
        super().__init__()
        self._seq_ids = seq_ids

    def run(self, batch: Batch) -> StepResult:
        tokens = super().run(batch).tokens
        errors = {seq_id: "not a number" for seq_id in self._seq_ids if tokens.pop(seq_id, None) is not None}
        return StepResult(tokens=tokens, errors=errors)


def test_a_sequence_without_a_token_ends_alone_and_its_prompt_is_not_shared() -> None:
    core = make_core(executor=Poisons("a/0", "a/1"), tokens=32)
    core.add(request("a", num_prompt=9, n=2, max_tokens=2), 0.0)
    core.add(request("b", num_prompt=9, max_tokens=2), 0.0)
    outputs = drain(core)
    ends = {end.seq_id: (end.reason, end.error) for output in outputs for end in output.finished}
    assert ends == {"a/0": ("error", "not a number"), "a/1": ("error", "not a number"), "b/0": ("length", None)}
    assert all(output.error is None for output in outputs)
    assert [core.store.match(request(name, num_prompt=9).prompt_ids) for name in "ab"] == [0, 8]
    assert core.store.stats()[0].used == 0 and core.counters.failed_steps == 0


class Plans:
    """A planner that says what it was given, then nothing."""

    def __init__(self, *plans: BatchPlan) -> None:
        self._plans = list(plans)

    def plan(self, state: EngineState, budget: TokenBudget) -> BatchPlan:
        return self._plans.pop(0) if self._plans else BatchPlan()


def test_an_empty_plan_ends_the_head_with_numbers_instead_of_spinning() -> None:
    core = make_core(planner=Plans())
    core.add(request("a", num_prompt=5), 0.0)
    output = core.step(0.0)
    assert output.finished[0].reason == "error"
    assert "5 tokens need (2,) KV blocks, (16,) of (16,) can be had" in str(output.finished[0].error)
    assert core.counters.stalls == 1
    assert not core.has_work


def test_a_plan_that_promises_too_much_loses_nothing() -> None:
    chunks = (Chunk(seq_id="a/0", num_tokens=8), Chunk(seq_id="b/0", num_tokens=8))
    lying = BatchPlan(admits=("a/0", "b/0"), chunks=chunks)
    core = make_core(planner=Plans(lying), num_blocks=3, tokens=16)
    core.add(request("a", num_prompt=8, max_tokens=1), 0.0)
    core.add(request("b", num_prompt=8, max_tokens=1), 0.0)
    output = core.step(0.0)
    assert output.preempted == ("b/0",)
    assert [entry.seq_id for entry in output.finished] == ["a/0"]
    assert core.num_waiting == 1


# ---- what can be seen


def test_snapshot_is_plain_data() -> None:
    core = make_core(seqs=2)
    core.add(request("a", num_prompt=5, max_tokens=4), 1.0)
    core.add(request("b", num_prompt=5, n=2), 2.0)
    core.step(3.0)
    snapshot = core.snapshot()
    running, waiting, pending = snapshot["sequences"]
    assert (running["state"], running["since_s"], running["arrival_s"]) == ("running", 3.0, 1.0)
    assert (running["num_blocks"], running["num_own_blocks"], running["own_bytes"]) == ([2], [2], 2000)
    assert (waiting["state"], waiting["since_s"], pending["state"]) == ("waiting", 2.0, "pending")
    assert snapshot["blocks"] == [{"total": 16, "free": 14, "cached": 0, "used": 2, "block_bytes": 1000}]
    assert snapshot["counters"]["requests"] == 2
