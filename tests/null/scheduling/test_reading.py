# SPDX-License-Identifier: Apache-2.0
"""Prompts that are scored and texts that are embedded: the core's side. What is read, once each, whatever happens on the way."""

from __future__ import annotations

from typing import Any

import pytest

from tests.cores import drain, make_core, request
from tests.preempting import Preempting
from ziggurat.errors import ContextLengthExceeded, KVCapacityExceeded
from ziggurat.scheduling.core import EngineCore
from ziggurat.scheduling.null import NullExecutor
from ziggurat.scheduling.outputs import StepOutput
from ziggurat.scheduling.planners import PLANNERS, resolve
from ziggurat.scheduling.protocol import Batch, SampledToken, StepResult


class Records(NullExecutor):
    """The null executor, and the rows that were asked of it."""

    def __init__(self, fails_at: int = -1) -> None:
        super().__init__()
        self.rows: dict[str, list[int]] = {}
        self.num_computed = 0
        self._fails_at = fails_at

    def run(self, batch: Batch) -> StepResult:
        if batch.step == self._fails_at:
            return StepResult(tokens={}, errors={item.seq_id: "broken numbers" for item in batch.items})
        for item in batch.items:
            self.num_computed += len(item.token_ids)
            if item.read is not None:
                assert item.start <= item.read.first
                assert item.read.first + item.read.num_rows <= item.start + len(item.token_ids)
                rows = range(item.read.first, item.read.first + item.read.num_rows)
                self.rows.setdefault(item.seq_id, []).extend(rows)
        return super().run(batch)


def scored(outputs: list[StepOutput], seq_id: str) -> list[int]:
    entries = [each for output in outputs for each in output.prompt_logprobs if each.seq_id == seq_id]
    return [token.token_id for each in entries for token in each.tokens]


def started(**options: Any) -> tuple[EngineCore, Records]:
    executor = Records()
    return make_core(executor=executor, **options), executor


@pytest.mark.parametrize("num_prompt", [1, 2, 4, 5, 21])
def test_every_token_of_a_prompt_but_the_first_is_scored_once(num_prompt: int) -> None:
    core, executor = started(tokens=5)
    core.add(request("a", num_prompt, prompt_logprobs=0, max_tokens=3), 0.0)
    outputs = drain(core)
    prompt = list(request("a", num_prompt).prompt_ids)
    assert scored(outputs, "a/0") == prompt[1:]
    assert executor.rows.get("a/0", []) == list(range(num_prompt - 1))
    assert sum(len(output.tokens) for output in outputs) == 3


@pytest.mark.parametrize("n", [1, 3])
def test_a_prompt_that_is_only_scored_ends_with_length_and_no_token(n: int) -> None:
    core, _ = started()
    core.add(request("a", 9, prompt_logprobs=0, max_tokens=0, n=n), 0.0)
    outputs = drain(core)
    assert [done.reason for output in outputs for done in output.finished] == ["length"] * n
    assert scored(outputs, "a/0") == list(request("a", 9).prompt_ids)[1:]
    assert not any(output.tokens for output in outputs)


def test_scored_prompts_and_means_take_nothing_from_the_prefix_cache_and_give_to_it() -> None:
    core, executor = started()
    core.add(request("a", 12, prompt_logprobs=0, max_tokens=1), 0.0)
    drain(core)
    for pooling, num_cached in (("mean", 0), ("last", 8)):
        before = executor.num_computed
        core.add(request("a", 12), 0.0, pooling=pooling)  # type: ignore[arg-type]
        (admission,) = [each for output in drain(core) for each in output.admitted]
        assert admission.num_cached_tokens == num_cached
        assert executor.num_computed - before == 12 - num_cached
    assert executor.rows["a/0"] == [*range(11), *range(12), 11]


def test_one_of_n_continuations_scores_the_prompt() -> None:
    core, executor = started(seqs=2)
    core.add(request("a", 9, prompt_logprobs=0, n=4, best_of=5, max_tokens=2), 0.0)
    outputs = drain(core)
    assert executor.rows == {"a/0": list(range(8))}
    assert len({new.seq_id for output in outputs for new in output.tokens}) == 5


@pytest.mark.parametrize("planner", sorted(PLANNERS.names()))
def test_preemption_reads_nothing_twice(planner: str) -> None:
    core, executor = started(num_blocks=10, tokens=25, planner=resolve(planner))
    for name in "abc":
        core.add(request(name, 13, prompt_logprobs=0, max_tokens=12, ignore_eos=True), 0.0)
        core.add(request(f"{name}{name}", 17), 0.0, pooling="mean")
    outputs = drain(core)
    for name in "abc":
        assert scored(outputs, f"{name}/0") == list(request(name, 13).prompt_ids)[1:]
        assert executor.rows[f"{name}{name}/0"] == list(range(17))
    pooled = [done.pooled for output in outputs for done in output.finished if done.seq_id == "aa/0"]
    assert pooled == [(17.0,)]


@pytest.mark.parametrize("pooling", ["mean", None])
def test_preempted_in_the_middle_of_its_prompt(pooling: Any) -> None:
    planner = Preempting(resolve("sarathi"))
    core, executor = started(num_blocks=20, tokens=5, planner=planner)
    core.add(request("b", 30, prompt_logprobs=0, max_tokens=2), 0.0, pooling=pooling)
    outputs = drain(core)
    assert [computed for _, computed in planner.at[:3]] == [10, 18, 26], (
        "it takes what it has read from the cache, and goes on"
    )
    assert executor.rows["b/0"] == list(range(30 if pooling else 29))
    if pooling:
        assert [done.pooled for output in outputs for done in output.finished] == [(30.0,)]
    else:
        assert scored(outputs, "b/0") == list(request("b", 30).prompt_ids)[1:]


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_an_embedding_may_fill_the_context_and_no_more(pooling: Any) -> None:
    core, _ = started(max_model_len=40)
    core.add(request("a", 40), 0.0, pooling=pooling)
    (done,) = [done for output in drain(core) for done in output.finished]
    assert done.reason == "stop" and done.num_output_tokens == 0
    assert done.pooled == ((40.0,) if pooling == "mean" else (1.0,))
    with pytest.raises(ContextLengthExceeded) as caught:
        core.add(request("b", 41), 0.0, pooling=pooling)
    assert caught.value.param == "prompt"
    tight, _ = started(num_blocks=9)
    with pytest.raises(KVCapacityExceeded, match="shorten the prompt"):
        tight.add(request("a", 40), 0.0, pooling=pooling)


def test_broken_numbers_and_aborts_end_an_embedding_without_a_vector() -> None:
    core = make_core(executor=Records(fails_at=1), tokens=8)
    core.add(request("a", 20), 0.0, pooling="mean")
    (done,) = [done for output in drain(core) for done in output.finished]
    assert (done.reason, done.error, done.pooled) == ("error", "broken numbers", None)
    core.add(request("b", 20), 0.0, pooling="mean")
    core.step(0.0)
    (done,) = core.abort("b")
    assert (done.reason, done.pooled) == ("abort", None)
    drain(core)


class Forgets(NullExecutor):
    """Samples and reads nothing."""

    def run(self, batch: Batch) -> StepResult:
        return StepResult(
            tokens={
                each: SampledToken(token_id=0) for item in batch.items if item.sample for each in item.sample.seq_ids
            }
        )


def test_an_executor_that_reads_nothing_is_found_out() -> None:
    core = make_core(executor=Forgets())
    core.add(request("a", 4), 0.0, pooling="mean")
    output = core.step(0.0)
    assert output.error is not None and "read nothing off the prompt of a/0" in str(output.error)
    drain(core)
