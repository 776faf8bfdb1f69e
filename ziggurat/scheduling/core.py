# SPDX-License-Identifier: Apache-2.0
"""The loop of the engine: decide, take space, run, record. Synchronous; a wall-clock thread and a virtual driver call the same one.

The core owns sequence states and the order of the queue. The store owns space, the planner decides, the executor computes.
Promises: each admitted sequence ends exactly once; an ended one holds no space; a request that was accepted can always run alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ziggurat.errors import EngineError, QueueFull, RequestError
from ziggurat.memory.kv import CopyOp, KVStore, OutOfBlocks
from ziggurat.memory.swap import SwapSpace
from ziggurat.scheduling.admission import output_limit
from ziggurat.scheduling.decisions import DecisionLog
from ziggurat.scheduling.fairness import Clients
from ziggurat.scheduling.items import batch_item
from ziggurat.scheduling.order import QueueOrder, fcfs
from ziggurat.scheduling.outputs import Counters, Finished, NewToken, PromptLogprobs, StepOutput
from ziggurat.scheduling.preemption import PreemptionMode, auto
from ziggurat.scheduling.probe import StoreProbe, WaitingViews
from ziggurat.scheduling.protocol import (
    Batch,
    BatchItem,
    BatchPlan,
    BatchPlanner,
    Chunk,
    EngineState,
    Executor,
    Pooling,
    StepResult,
    TokenBudget,
)
from ziggurat.scheduling.roster import Roster
from ziggurat.scheduling.sequence import (
    EngineRequest,
    FinishReason,
    SequenceState,
    SequenceStatus,
    derive_seed,
    new_family,
)
from ziggurat.scheduling.swapping import Swapper


class EngineCore:
    """Many requests over one store and one executor. Not thread-safe: one thread calls it.

    Args:
        store: KV space. Others may take blocks out of circulation, as long as every accepted sequence could still run alone.
        budget: limits of one step.
        max_model_len: limit of prompt plus output, tokens.
        block_bytes: size of one block, per KV group (for messages and `snapshot`).
        max_queued_requests: requests that may wait for their first admission; one more is refused.
        eos_ids: tokens that end a text unless the request ignores them.
        seed: base of the seeds of requests that bring none.
        log: where decisions are filed, if wanted.
        order: who is served first and gives way last (`ziggurat.scheduling.order`).
        clients: the accounts of service, with weights; by default all weigh the same.
        swap: where preempted sequences keep copies of their KV; None computes it again.
        preemption_mode: whether they do (`ziggurat.scheduling.preemption`).

    Raises:
        ConfigError: the token budget cannot hold a decode of every sequence and one prompt token.
    """

    def __init__(
        self,
        store: KVStore,
        planner: BatchPlanner,
        executor: Executor,
        budget: TokenBudget,
        *,
        max_model_len: int,
        block_bytes: Sequence[int],
        max_queued_requests: int = 256,
        eos_ids: Iterable[int] = (),
        seed: int = 0,
        log: DecisionLog | None = None,
        order: QueueOrder = fcfs,
        clients: Clients | None = None,
        swap: SwapSpace | None = None,
        preemption_mode: PreemptionMode = auto,
    ) -> None:
        budget.check()
        assert len(block_bytes) == len(store.total_blocks()), "one block size per KV group"
        self.store, self.planner, self.executor, self.budget = store, planner, executor, budget
        self.max_model_len = max_model_len
        self.max_queued_requests = max_queued_requests
        self.block_bytes = tuple(block_bytes)
        self.log = log
        self.counters = Counters()
        self._eos_ids = frozenset(eos_ids)
        self._sorted_eos_ids = tuple(sorted(self._eos_ids))
        self._seed = seed
        self.swapper = (
            None
            if swap is None
            else Swapper(store, swap, preemption_mode, self.counters, budget.max_num_batched_tokens)
        )
        self.clients = Clients() if clients is None else clients
        self._roster = Roster(store, self.counters, order, self.swapper, self.clients)
        self._probe = StoreProbe(store, self._roster.waiting, self.swapper)
        self._ended_outside: list[Finished] = []

    # ---- requests in and out

    def add(
        self, request: EngineRequest, now_s: float, *, seed: int | None = None, pooling: Pooling | None = None
    ) -> tuple[str, ...]:
        """Queue a request. Returns the ids of its sequences, ``ID/0`` first; each of them will end exactly once.

        Args:
            seed: used if the request brings none; by default derived from the core's seed and the order of arrival.
            pooling: the request is for an embedding: one sequence that never samples; it ends with ``stop`` and `Finished.pooled`.
                Tokens of the prefix cache have no rows: a ``mean`` computes all its tokens, ``last`` needs only its last one.

        Raises:
            RequestError: empty prompt, or the id is still in use.
            ContextLengthExceeded: over ``max_model_len``.
            KVCapacityExceeded: it could never fit the pool, even alone.
            QueueFull: try again after ``retry_after_s``.
        """
        roster, params = self._roster, request.params
        roster.now_s = now_s
        if roster.sequences(request.request_id):
            message = f"request id {request.request_id!r} is still in use: send another one"
            raise RequestError(message, param="request_id", code="duplicate_id")
        max_tokens = output_limit(
            self.store,
            num_prompt_tokens=len(request.prompt_ids),
            max_tokens=params.max_tokens if pooling is None else 0,
            max_model_len=self.max_model_len,
            block_bytes=self.block_bytes,
        )
        if roster.num_queued >= self.max_queued_requests:
            wait_s = roster.retry_after_s()
            raise QueueFull(
                f"{roster.num_queued} requests are waiting and the queue holds {self.max_queued_requests}: retry in {wait_s} s",
                retry_after_s=wait_s,
            )
        if params.seed is not None:
            seed = params.seed
        elif seed is None:
            seed = derive_seed(self._seed, self.counters.requests)
        num_sequences = params.num_sequences if pooling is None else 1
        family = new_family(
            request,
            num_sequences,
            client=self.clients.enter(request.client),
            max_tokens=max_tokens,
            seed=seed,
            arrival=self.counters.requests,
            now_s=now_s,
            max_slots=self.budget.max_num_seqs,
        )
        # One of the family reads for all: their prompt is the same.
        family[0].reading = pooling or (None if params.prompt_logprobs is None else "logprobs")
        roster.enrol(family)
        return tuple(seq.seq_id for seq in family)

    def abort(self, request_id: str) -> tuple[Finished, ...]:
        """End what is left of a request, in any state; nothing happens if it has ended or never was."""
        return self._end_from_outside(self._roster.sequences(request_id), "abort")

    def finish(self, seq_id: str, reason: FinishReason) -> tuple[Finished, ...]:
        """End one sequence for a reason found outside (a stop string); nothing happens if it has ended or never was.

        Ending the first continuation before the prompt is finished ends its siblings too: nobody would compute their prompt.
        """
        seq = self._roster.find(seq_id)
        return self._end_from_outside([] if seq is None else [seq], reason)

    def _end_from_outside(self, sequences: Sequence[SequenceState], reason: FinishReason) -> tuple[Finished, ...]:
        finished = self._roster.end_all(sequences, reason)
        self._ended_outside += finished
        return tuple(finished)

    def make_room(self, num_blocks: Sequence[int]) -> list[str]:
        """See `Roster.make_room`; between two steps."""
        return self._roster.make_room(num_blocks)

    # ---- what can be seen

    @property
    def has_work(self) -> bool:
        """Some sequence has not ended."""
        return self._roster.num_requests > 0

    @property
    def num_running(self) -> int:
        """Sequences that hold space."""
        return len(self._roster.running)

    @property
    def num_waiting(self) -> int:
        """Sequences in the queue, preempted ones included."""
        return len(self._roster.waiting)

    def snapshot(self) -> dict[str, Any]:
        """Who holds what and since when, as plain data: ``sequences`` (see `Roster.snapshot`), ``blocks`` per KV group, ``counters``."""
        stats = self.store.stats()
        return {
            "num_running": self.num_running,
            "num_waiting": self.num_waiting,
            "num_requests": self._roster.num_requests,
            "sequences": self._roster.snapshot(self.block_bytes),
            "blocks": [
                {"total": s.total, "free": s.free, "cached": s.cached, "used": s.used, "block_bytes": size}
                for s, size in zip(stats, self.block_bytes, strict=True)
            ],
            "counters": self.counters.as_dict(),
        }

    # ---- one step

    def step(self, now_s: float) -> StepOutput:
        """Decide, take space, run, record. Does nothing without work; a failing executor is reported, not raised."""
        roster = self._roster
        roster.now_s = now_s
        if not self.has_work:
            return StepOutput(step=self.counters.steps)
        roster.arrange()
        plan = self._decide(now_s)
        for seq_id in plan.preempts:
            roster.preempt(self._running(seq_id))
        # All are opened before anybody reserves: a prefix that the plan counted on is pinned before it can be evicted.
        admitted = tuple(roster.admit(seq_id) for seq_id in plan.admits)
        for seq_id in plan.admits:
            roster.restore(seq_id)
        scheduled, lapsed, batch = self._take_space(plan.chunks)
        tokens: list[NewToken] = []
        scored: list[PromptLogprobs] = []
        finished: list[Finished] = []
        error: EngineError | None = None
        if scheduled:
            result, error = self._run(batch)
            if result is None:
                finished = self._fail(scheduled, batch, str(error))
            else:
                finished = self._record(scheduled, batch, result, tokens, scored)
        elif not plan.preempts:
            finished = self._end_stalled()
        output = StepOutput(
            step=batch.step,
            tokens=tuple(tokens),
            prompt_logprobs=tuple(scored),
            finished=tuple(finished),
            admitted=admitted,
            preempted=(*plan.preempts, *lapsed),
            num_batched_tokens=batch.num_tokens,
            num_batched_seqs=len(batch.items),
            error=error,
        )
        self.counters.steps += 1
        self._file(output, batch)
        return output

    def _fail(self, scheduled: Sequence[SequenceState], batch: Batch, error: str) -> list[Finished]:
        """The batch failed. What it should have brought back from the swap space was filed for reuse and is not there."""
        ids = [seq.token_ids()[: seq.num_computed] for seq in scheduled] if batch.moves else []
        salts = [seq.cache_salt for seq in scheduled]
        finished = self._roster.end_all(scheduled, "error", error=error)
        if self.swapper is not None and batch.moves:
            self.swapper.on_failure()
            for token_ids, salt in zip(ids, salts, strict=True):
                self.store.forget(token_ids, salt=salt)
        return finished

    def _decide(self, now_s: float) -> BatchPlan:
        if self.swapper is not None:
            self.swapper.begin()
        state = EngineState(
            running=[seq.view() for seq in self._roster.by_rank()],
            waiting=WaitingViews(self._roster.waiting),
            kv=self._probe,
            now_s=now_s,
        )
        plan = self.planner.plan(state, self.budget)
        assert not (plan.preempts and plan.admits), "a plan that preempts admits nobody"
        assert sum(chunk.num_tokens for chunk in plan.chunks) <= self.budget.max_num_batched_tokens
        assert len({chunk.seq_id for chunk in plan.chunks}) == len(plan.chunks), "one chunk per sequence"
        return plan

    def _running(self, seq_id: str) -> SequenceState:
        seq = self._roster.find(seq_id)
        assert seq is not None and seq.status is SequenceStatus.RUNNING, f"planned {seq_id}, which is not running"
        return seq

    def _take_space(self, chunks: Sequence[Chunk]) -> tuple[list[SequenceState], list[str], Batch]:
        """Reserve for every chunk. Returns the sequences that run, those that found less space than planned, and the batch."""
        scheduled: list[SequenceState] = []
        lapsed: list[str] = []
        items: list[BatchItem] = []
        copies: list[CopyOp] = []
        for chunk in chunks:
            seq = self._running(chunk.seq_id)
            assert 1 <= chunk.num_tokens <= seq.num_tokens - seq.num_computed, f"chunk of {seq.seq_id} out of range"
            try:
                copies += self.store.reserve(seq.seq_id, chunk.num_tokens)
            except OutOfBlocks:
                # The store took nothing; the sequence waits and loses no token.
                self._roster.preempt(seq)
                lapsed.append(seq.seq_id)
                continue
            scheduled.append(seq)
            items.append(batch_item(seq, chunk.num_tokens, self.store, self._sorted_eos_ids))
        moves = () if self.swapper is None else self.swapper.take_moves(bool(scheduled))
        batch = Batch(step=self.counters.steps, copies=tuple(copies), items=tuple(items), moves=moves)
        return scheduled, lapsed, batch

    def _run(self, batch: Batch) -> tuple[StepResult | None, EngineError | None]:
        try:
            result = self.executor.run(batch)
            wanted = {seq_id for item in batch.items if item.sample is not None for seq_id in item.sample.seq_ids}
            if missing := wanted - result.tokens.keys() - result.errors.keys():
                raise EngineError(f"the executor returned no token for {', '.join(sorted(missing))}")
            reads = {item.seq_id for item in batch.items if item.read is not None}
            if missing := reads - result.prompt_logprobs.keys() - result.pooled.keys() - result.errors.keys():
                raise EngineError(f"the executor read nothing off the prompt of {', '.join(sorted(missing))}")
        except Exception as failure:  # noqa: BLE001  whatever was raised, the space has to go back; the cause goes out with the output
            self.counters.failed_steps += 1
            error = EngineError(f"step {batch.step} failed with {len(batch.items)} sequences: {failure}")
            error.__cause__ = failure
            return None, error
        return result, None

    def _record(
        self,
        scheduled: Sequence[SequenceState],
        batch: Batch,
        result: StepResult,
        tokens: list[NewToken],
        scored: list[PromptLogprobs],
    ) -> list[Finished]:
        finished: list[Finished] = []
        for seq, item in zip(scheduled, batch.items, strict=True):
            failure = next(
                (result.errors[each.seq_id] for each in (seq, *seq.children) if each.seq_id in result.errors), None
            )
            if failure is not None:
                # Ends before the commit: what was computed must not become somebody else's prefix.
                finished += self._roster.end_all([seq], "error", error=failure)
                continue
            end = item.start + len(item.token_ids)
            self.store.commit(seq.seq_id, item.token_ids)
            self.counters.computed_tokens += len(item.token_ids)
            self.counters.recomputed_tokens += max(0, min(end, seq.high_water) - item.start)
            seq.num_computed = end
            seq.high_water = max(seq.high_water, end)
            if item.read is not None and (entries := seq.take_reading(item.read, result)):
                scored.append(PromptLogprobs(seq_id=seq.seq_id, tokens=entries))
            if item.sample is None:
                if end == seq.num_tokens:
                    finished += self._roster.end_all([seq], "length" if seq.reading == "logprobs" else "stop")
                continue
            for member in (seq, *seq.children):
                token = result.tokens[member.seq_id]
                member.output_ids.append(token.token_id)
                tokens.append(NewToken(seq_id=member.seq_id, token=token, is_first=len(member.output_ids) == 1))
                member.client.serve(0, 1)
            finished += self._after_tokens(seq)
        self.counters.generated_tokens += len(tokens)
        return finished

    def _after_tokens(self, seq: SequenceState) -> list[Finished]:
        """Fork the continuations that go on, then end those that are done."""
        family, seq.children = [seq, *seq.children], []
        ends = {member.seq_id: member.natural_end(self._eos_ids) for member in family}
        going_on = [member for member in family[1:] if ends[member.seq_id] is None]
        if going_on:
            self._roster.fork(seq, going_on, self.budget.max_num_seqs)
        finished = []
        for member in family:
            if (end := ends[member.seq_id]) is not None:
                reason, stop_token_id = end
                finished.append(self._roster.end(member, reason, stop_token_id=stop_token_id))
        return finished

    def _end_stalled(self) -> list[Finished]:
        """Nothing can run although something is there. Admission rules it out unless the pool shrank; ending the head beats spinning."""
        roster = self._roster
        head = roster.running[0] if roster.running else next(iter(roster.waiting.values()))
        self.counters.stalls += 1
        error = (
            f"request {head.request_id} cannot go on: {head.num_tokens} tokens need {self.store.peak_blocks(head.num_tokens)} KV blocks, "
            f"{self.store.free_blocks()} of {self.store.total_blocks()} can be had, {len(roster.running)} sequences are running"
        )
        return roster.end_all([head], "error", error=error)

    def _file(self, output: StepOutput, batch: Batch) -> None:
        ended = [*self._ended_outside, *output.finished]
        self._ended_outside = []
        if self.log is not None:
            self.log.file(output, batch, ended)
