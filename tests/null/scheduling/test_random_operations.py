# SPDX-License-Identifier: Apache-2.0
"""Nothing is lost: 2,000 random operations, and a state machine that looks for the shortest way to lose something."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.kv_check import HashingExecutor, expected_tokens
from tests.planner_contract import CheckedPlanner
from tests.stores import small_store
from ziggurat.errors import ContextLengthExceeded, EngineError, KVCapacityExceeded, QueueFull
from ziggurat.memory.kv import KVStore
from ziggurat.memory.paged import PagedKVStore
from ziggurat.scheduling import planners
from ziggurat.scheduling.core import EngineCore
from ziggurat.scheduling.outputs import Finished, StepOutput
from ziggurat.scheduling.protocol import Batch, StepResult, TokenBudget
from ziggurat.scheduling.sampling import SamplingParams
from ziggurat.scheduling.sequence import FinishReason, Request, derive_seed

VOCAB_SIZE = 64
EOS_ID = 1
MAX_MODEL_LEN = 44
MAX_BATCHED_TOKENS = 12


class Flaky:
    """The hashing executor; the next run fails when ``is_broken`` is set, after it has written into the blocks."""

    def __init__(self) -> None:
        self._inner = HashingExecutor(VOCAB_SIZE)
        self.is_broken = False

    def run(self, batch: Batch) -> StepResult:
        result = self._inner.run(batch)
        if self.is_broken:
            self.is_broken = False
            raise EngineError("as told")
        return result


class Model:
    """A core, and what is known about it from outside: a dict of requests and a dict of endings."""

    def __init__(self, planner: str, store: KVStore) -> None:
        self.executor = Flaky()
        self.core = EngineCore(
            store,
            CheckedPlanner(planners.resolve(planner), is_stall_free=planner == "sarathi"),
            self.executor,
            TokenBudget(max_num_batched_tokens=MAX_BATCHED_TOKENS, max_num_seqs=5),
            max_model_len=MAX_MODEL_LEN,
            max_queued_requests=8,
            eos_ids=(EOS_ID,),
            block_bytes=(100,) * len(store.total_blocks()),
        )
        self.requests: dict[str, Request] = {}
        self.tokens: dict[str, list[int]] = {}
        self.ended: dict[str, FinishReason] = {}
        self.num_refused = 0

    def add(self, prompt: Sequence[int], n: int, max_tokens: int | None) -> None:
        name = f"r{len(self.requests) + self.num_refused}"
        params = SamplingParams(n=n, max_tokens=max_tokens, seed=len(self.requests))
        request = Request(request_id=name, prompt_ids=tuple(prompt), params=params)
        try:
            ids = self.core.add(request, 0.0)
        except (QueueFull, KVCapacityExceeded, ContextLengthExceeded):
            self.num_refused += 1
        else:
            assert ids == tuple(f"{name}/{index}" for index in range(n))
            self.requests[name] = request
            self.tokens |= {seq_id: [] for seq_id in ids}

    def open_sequences(self) -> list[str]:
        return [seq_id for seq_id in self.tokens if seq_id not in self.ended]

    def step(self, *, fail: bool = False) -> StepOutput:
        self.executor.is_broken = fail
        output = self.core.step(0.0)
        assert (output.error is not None) == (fail and output.num_batched_seqs > 0)
        self.executor.is_broken = False
        for new in output.tokens:
            assert new.seq_id not in self.ended, "a token after the end"
            assert new.is_first == (not self.tokens[new.seq_id])
            self.tokens[new.seq_id].append(new.token.token_id)
        self.end(output.finished)
        return output

    def end(self, finished: Sequence[Finished]) -> None:
        for entry in finished:
            assert entry.seq_id not in self.ended, f"{entry.seq_id} ended twice"
            self.ended[entry.seq_id] = entry.reason
            assert entry.num_output_tokens == len(self.tokens[entry.seq_id])

    def check(self) -> None:
        """At any moment."""
        self.core.store.audit()
        snapshot = self.core.snapshot()
        assert sorted(row["seq_id"] for row in snapshot["sequences"]) == sorted(self.open_sequences())
        running = [row for row in snapshot["sequences"] if row["state"] == "running"]
        assert len(running) == self.core.num_running <= self.core.budget.max_num_seqs
        if not running:
            assert all(stats.used == 0 for stats in self.core.store.stats())
        assert self.core.has_work == bool(self.open_sequences())

    def drain(self) -> None:
        """To the end: everything ends once, no space is held, every text is the one that its request alone would have got."""
        for _ in range(2000):
            if not self.core.has_work:
                break
            self.step()
        self.check()
        assert self.ended.keys() == self.tokens.keys()
        assert self.core.counters.stalls == 0
        for name, request in self.requests.items():
            for index in range(request.params.n):
                seq_id = f"{name}/{index}"
                self.check_text(request, index, self.tokens[seq_id], self.ended[seq_id])

    def check_text(self, request: Request, index: int, tokens: list[int], reason: FinishReason) -> None:
        assert request.params.seed is not None
        seed = derive_seed(request.params.seed, index)
        assert tokens == expected_tokens(request.prompt_ids, seed, len(tokens), VOCAB_SIZE)
        assert EOS_ID not in tokens[:-1]
        if reason == "stop":
            assert tokens[-1] == EOS_ID
        elif reason == "length" and request.params.max_tokens is not None:
            assert len(tokens) == request.params.max_tokens


def random_operation(model: Model, rng: random.Random, beginnings: list[list[int]]) -> None:
    kind = rng.choices(("add", "step", "abort", "finish", "fail"), (22, 60, 6, 6, 3))[0]
    if kind == "add":
        own = [rng.randrange(2, VOCAB_SIZE) for _ in range(rng.randint(1, 14))]
        prompt = [*rng.choice([[], *beginnings]), *own]
        model.add(prompt, rng.choice((1, 1, 2, 3, 4)), rng.choice((None, 1, 3, 8, 16)))
    elif kind == "step":
        model.step()
    elif kind == "fail":
        model.step(fail=True)
    elif names := (model.open_sequences() or list(model.ended)):
        seq_id = rng.choice(names)
        if kind == "abort":
            model.end(model.core.abort(seq_id.partition("/")[0]))
        elif model.tokens[seq_id] or seq_id in model.ended:  # a stop string is found in a token that came out
            done = model.core.finish(seq_id, "abort")
            assert len(done) == (seq_id not in model.ended)
            model.end(done)


def full_store() -> PagedKVStore:
    return small_store(13)


def windowed_store() -> PagedKVStore:
    """With a second group of 7 blocks and a window of 10 tokens, too small for a whole text at once."""
    return small_store(13, window=(10, 7), max_chunk_tokens=MAX_BATCHED_TOKENS)


@pytest.mark.parametrize("make_store", [full_store, windowed_store])
@pytest.mark.parametrize("planner", planners.PLANNERS.names())
def test_two_thousand_random_operations(planner: str, make_store: Callable[[], KVStore]) -> None:
    rng = random.Random(planner)
    beginnings = [[rng.randrange(2, VOCAB_SIZE) for _ in range(12)] for _ in range(2)]
    model = Model(planner, make_store())
    for operation in range(2000):
        random_operation(model, rng, beginnings)
        if operation % 20 == 0:
            model.check()
    model.drain()
    counters = model.core.counters
    assert set(counters.finished) == {"stop", "length", "abort", "error"}
    assert min(counters.recomputed_tokens, counters.prefix_hit_tokens, model.num_refused) > 20
    assert counters.preemptions > 5, "planners that reserve preempt only for forks and blocks that were taken away"


class CoreMachine(RuleBasedStateMachine):
    """Any order of operations, shrunk when something breaks."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Model("sarathi", windowed_store())

    @rule(
        beginning=st.sampled_from([(), (5,) * 8, (6, 7) * 4]),
        own=st.lists(st.integers(2, VOCAB_SIZE - 1), min_size=1, max_size=10),
        n=st.integers(1, 4),
        max_tokens=st.one_of(st.none(), st.integers(1, 12)),
    )
    def add(self, beginning: tuple[int, ...], own: list[int], n: int, max_tokens: int | None) -> None:
        self.model.add([*beginning, *own], n, max_tokens)

    @precondition(lambda self: self.model.open_sequences())
    @rule(count=st.integers(1, 6))
    def steps(self, count: int) -> None:
        for _ in range(count):
            self.model.step()

    @rule()
    def fail(self) -> None:
        self.model.step(fail=True)

    @precondition(lambda self: self.model.requests)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        self.model.end(self.model.core.abort(data.draw(st.sampled_from(sorted(self.model.requests)))))

    @precondition(lambda self: self.model.tokens)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        seq_id = data.draw(st.sampled_from(sorted(self.model.tokens)))
        was_open = seq_id not in self.model.ended
        done = self.model.core.finish(seq_id, "stop" if self.model.tokens[seq_id][-1:] == [EOS_ID] else "abort")
        assert (seq_id in [entry.seq_id for entry in done]) == was_open
        self.model.end(done)

    @invariant()
    def consistent(self) -> None:
        self.model.check()

    def teardown(self) -> None:
        self.model.drain()


TestCoreMachine = CoreMachine.TestCase
TestCoreMachine.settings = settings(max_examples=40, stateful_step_count=25)
