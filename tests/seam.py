# SPDX-License-Identifier: Apache-2.0
"""The seam: one script of operations, replayed through an `EngineCore` with any executor, must give the same decisions.

Operations are tied to step numbers, not to times, so that executors of any speed see the same world. Requests ignore
end-of-sequence tokens and have fixed lengths, so that decisions do not depend on which tokens come out.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tests.stores import small_store
from ziggurat.memory.kv import KVStore
from ziggurat.memory.swap import SwapSpace
from ziggurat.scheduling import planners
from ziggurat.scheduling.core import EngineCore
from ziggurat.scheduling.decisions import DecisionLog
from ziggurat.scheduling.preemption import PreemptionMode, auto
from ziggurat.scheduling.protocol import BatchPlanner, Executor, Pooling, TokenBudget
from ziggurat.scheduling.sampling import SamplingParams
from ziggurat.scheduling.sequence import Request

MAX_STEPS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """What happens before which step: requests to add, request ids to abort, sequence ids to finish; ``poolings`` of embeddings."""

    adds: dict[int, list[Request]]
    aborts: dict[int, list[str]] = field(default_factory=dict)
    finishes: dict[int, list[str]] = field(default_factory=dict)
    poolings: dict[str, Pooling] = field(default_factory=dict)

    @property
    def last_step(self) -> int:
        return max([0, *self.adds, *self.aborts, *self.finishes])


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """What came out: the decisions, the tokens, the scored prompt tokens and the ending of every sequence, and the core itself."""

    log: DecisionLog
    tokens: dict[str, list[int]]
    scored: dict[str, list[int]]
    reasons: dict[str, str]
    core: EngineCore


def make_script(
    seed: int, *, num_requests: int = 14, vocab_size: int = 256, max_prompt: int = 40, max_new: int = 24
) -> Script:
    """Requests with shared beginnings, n up to 4, scored prompts, embeddings, aborts and endings from outside; deterministic."""
    rng = random.Random(seed)
    beginnings = [[rng.randrange(vocab_size) for _ in range(16)] for _ in range(2)]
    adds: dict[int, list[Request]] = {}
    aborts: dict[int, list[str]] = {}
    finishes: dict[int, list[str]] = {}
    poolings: dict[str, Pooling] = {}
    step = 0
    for number in range(num_requests):
        step += rng.choice((0, 0, 1, 3))
        own = [rng.randrange(vocab_size) for _ in range(rng.randint(1, max_prompt - 16))]
        prompt = [*rng.choice([[], *beginnings]), *own]
        n = rng.choice((1, 1, 2, 4))
        num_top = 2 if number % 4 == 1 else None
        params = SamplingParams(
            n=n,
            max_tokens=rng.randint(1, max_new),
            ignore_eos=True,
            temperature=1.0,
            seed=number,
            prompt_logprobs=num_top,
        )
        if number % 5 == 2:
            poolings[f"r{number}"] = "mean" if number % 2 else "last"
        adds.setdefault(step, []).append(Request(request_id=f"r{number}", prompt_ids=prompt, params=params))
        if rng.random() < 0.2:
            aborts.setdefault(step + rng.randint(0, 8), []).append(f"r{number}")
        elif rng.random() < 0.2:
            finishes.setdefault(step + rng.randint(0, 8), []).append(f"r{number}/{rng.randrange(n)}")
    return Script(adds=adds, aborts=aborts, finishes=finishes, poolings=poolings)


def replay(
    script: Script,
    make_executor: Callable[[], Executor],
    *,
    planner: str | BatchPlanner = "sarathi",
    make_store: Callable[[], KVStore] = lambda: small_store(24),
    block_bytes: Sequence[int] = (1024,),
    budget: TokenBudget = TokenBudget(max_num_batched_tokens=16, max_num_seqs=6),  # noqa: B008  frozen
    max_model_len: int = 96,
    swap: SwapSpace | None = None,
    preemption_mode: PreemptionMode = auto,
) -> Replay:
    """Run the script to its end. With a store from ``make_store`` the executor has to know the same pools."""
    log = DecisionLog()
    core = EngineCore(
        make_store(),
        planners.resolve(planner) if isinstance(planner, str) else planner,
        make_executor(),
        budget,
        max_model_len=max_model_len,
        block_bytes=block_bytes,
        log=log,
        swap=swap,
        preemption_mode=preemption_mode,
    )
    tokens: dict[str, list[int]] = {}
    scored: dict[str, list[int]] = {}
    reasons: dict[str, str] = {}
    for step in range(MAX_STEPS):
        for request in script.adds.get(step, []):
            pooling = script.poolings.get(request.request_id)
            tokens |= {seq_id: [] for seq_id in core.add(request, float(step), pooling=pooling)}
        ended = [done for request_id in script.aborts.get(step, []) for done in core.abort(request_id)]
        ended += [done for seq_id in script.finishes.get(step, []) for done in core.finish(seq_id, "stop")]
        output = core.step(float(step))
        assert output.error is None, output.error
        for new in output.tokens:
            tokens[new.seq_id].append(new.token.token_id)
        for each in output.prompt_logprobs:
            scored.setdefault(each.seq_id, []).extend(token.token_id for token in each.tokens)
        for done in (*ended, *output.finished):
            assert done.seq_id not in reasons, f"{done.seq_id} ended twice"
            reasons[done.seq_id] = done.reason
        if step >= script.last_step and not core.has_work:
            core.store.audit()
            assert reasons.keys() == tokens.keys(), "some sequence never ended"
            return Replay(log=log, tokens=tokens, scored=scored, reasons=reasons, core=core)
    raise AssertionError(f"not done after {MAX_STEPS} steps: {core.snapshot()}")
