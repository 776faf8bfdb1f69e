# SPDX-License-Identifier: Apache-2.0
"""Small cores for tests of the scheduling room."""

from __future__ import annotations

from typing import Any

from tests.stores import small_store
from ziggurat.scheduling import planners
from ziggurat.scheduling.core import EngineCore
from ziggurat.scheduling.null import NullExecutor
from ziggurat.scheduling.outputs import StepOutput
from ziggurat.scheduling.protocol import Batch, Executor, SampledToken, StepResult, TokenBudget
from ziggurat.scheduling.sampling import SamplingParams
from ziggurat.scheduling.sequence import Request


def make_core(
    *, num_blocks: int = 16, executor: Executor | None = None, tokens: int = 8, seqs: int = 4, **options: Any
) -> EngineCore:
    return EngineCore(
        small_store(num_blocks),
        options.pop("planner", None) or planners.resolve("sarathi"),
        executor or NullExecutor(),
        TokenBudget(max_num_batched_tokens=tokens, max_num_seqs=seqs),
        max_model_len=options.pop("max_model_len", 40),
        block_bytes=(1000,),
        **options,
    )


def request(name: str = "a", num_prompt: int = 3, **params: Any) -> Request:
    base = sum(name.encode()) * 1000
    return Request(request_id=name, prompt_ids=range(base, base + num_prompt), params=SamplingParams(**params))


def drain(core: EngineCore) -> list[StepOutput]:
    outputs = []
    while core.has_work:
        outputs.append(core.step(float(len(outputs))))
        assert len(outputs) < 1000
    core.store.audit()
    assert all(stats.used == 0 for stats in core.store.stats())
    assert core.counters.stalls == 0
    return outputs


def tokens_of(outputs: list[StepOutput], seq_id: str) -> list[int]:
    return [new.token.token_id for output in outputs for new in output.tokens if new.seq_id == seq_id]


class Says:
    """Answers with given tokens per sequence, then zeros."""

    def __init__(self, **tokens: list[int]) -> None:
        self._tokens = {name: list(ids) for name, ids in tokens.items()}
        self.batches: list[Batch] = []

    def run(self, batch: Batch) -> StepResult:
        self.batches.append(batch)
        wanted = [seq_id for item in batch.items if item.sample for seq_id in item.sample.seq_ids]
        left = {seq_id: self._tokens.get(seq_id.replace("/", ""), []) for seq_id in wanted}
        return StepResult(tokens={s: SampledToken(token_id=ids.pop(0) if ids else 0) for s, ids in left.items()})
