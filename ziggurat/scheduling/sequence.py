# SPDX-License-Identifier: Apache-2.0
"""What a sequence owns: its tokens, its place in the life cycle, its seed.

::

    pending --(its sibling's prompt is finished)--> running
    waiting --(admitted)--> running --(preempted)--> waiting
    pending | waiting | running --> finished

Positions of one sequence, half-open; the last sampled token is known before its KV is::

    [0, num_computed)            KV is in the store
    [num_computed, num_tokens)   known tokens, to be computed; exactly one while decoding
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal, Protocol

from ziggurat.scheduling.fairness import ClientShare
from ziggurat.scheduling.protocol import Pooling, ReadRequest, SampledToken, SequenceView, StepResult
from ziggurat.scheduling.sampling import SamplingParams

FinishReason = Literal["stop", "length", "abort", "error"]


class EngineRequest(Protocol):
    """What `EngineCore.add` reads of a request (`ziggurat.engine.types.GenerateRequest` is one)."""

    @property
    def request_id(self) -> str: ...
    @property
    def prompt_ids(self) -> Sequence[int]: ...
    @property
    def params(self) -> SamplingParams: ...
    @property
    def priority(self) -> int: ...
    @property
    def cache_salt(self) -> str: ...
    @property
    def expected_tokens(self) -> int | None: ...
    @property
    def client(self) -> str: ...
    @property
    def deadline_s(self) -> float | None: ...
    @property
    def adapter(self) -> str: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The plain `EngineRequest` of drivers and simulators."""

    request_id: str
    prompt_ids: Sequence[int]
    params: SamplingParams
    priority: int = 0
    cache_salt: str = ""
    expected_tokens: int | None = None
    client: str = ""
    deadline_s: float | None = None
    adapter: str = ""


class SequenceStatus(Enum):
    """Where a sequence is in its life."""

    PENDING = "pending"
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


def derive_seed(base: int, index: int) -> int:
    """A seed in [0, 2**63) for continuation ``index`` (or request number ``index``) under ``base``; equal inputs, equal seed."""
    digest = hashlib.blake2b(f"{base}/{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@dataclass(slots=True, kw_only=True, eq=False)
class SequenceState:
    """One continuation of one request. Only `EngineCore` and its `Roster` change it.

    Attributes:
        index: which of the request's n continuations.
        prompt_ids: shared by all continuations, not copied.
        max_tokens: output limit, cut to the context and to the pool.
        expected_tokens: how long the text is expected to be; planners of jobs set space aside for it.
        client: the account of whoever sent the request.
        arrival: order of the request's arrival.
        deadline_s: when the client wants it done, on the clock of ``arrival_s``; infinite if it did not say.
        since_s: when the present status began.
        num_cached: prompt tokens found in the prefix forest at the first admission.
        high_water: the most tokens that ever were computed; what is computed again below it counts as recomputed.
        adapter: the LoRA adapter that its steps run with; "" is none. Part of ``cache_salt``.
        children: continuations that wait for this one to finish the prompt; empty after the fork.
        max_slots: the cap of `num_slots`.
        reading: what is read off its prompt's rows: log-probabilities, or an embedding (then nothing is sampled).
        num_read: rows [0, num_read) were read. Survives preemption, so that nothing is reported or added twice.
        pooled: the embedding so far, fp32 [hidden]: what the executor returned last. The only bytes that reading keeps.
    """

    seq_id: str
    request_id: str
    index: int
    prompt_ids: Sequence[int]
    params: SamplingParams
    max_tokens: int
    expected_tokens: int
    seed: int
    cache_salt: str
    priority: int
    arrival: int
    arrival_s: float
    deadline_s: float
    client: ClientShare
    since_s: float
    max_slots: int
    status: SequenceStatus = SequenceStatus.PENDING
    adapter: str = ""
    output_ids: list[int] = field(default_factory=list)
    num_computed: int = 0
    num_cached: int = 0
    high_water: int = 0
    num_preemptions: int = 0
    was_admitted: bool = False
    finish_reason: FinishReason | None = None
    children: list[SequenceState] = field(default_factory=list)
    reading: Literal["logprobs"] | Pooling | None = None
    num_read: int = 0
    pooled: Sequence[float] | None = None

    @property
    def num_tokens(self) -> int:
        """Prompt and sampled tokens."""
        return len(self.prompt_ids) + len(self.output_ids)

    @property
    def num_slots(self) -> int:
        """Sequence slots that it takes while it runs, those of forks to come included."""
        return min(1 + len(self.children), self.max_slots)

    @property
    def is_sampling(self) -> bool:
        """Whether it ever samples; an embedding and a prompt that is only scored end with their prompt."""
        return self.reading not in ("mean", "last") and self.max_tokens > 0

    @property
    def max_cached(self) -> int | None:
        """How many tokens it may take from the prefix cache; None is any number.

        A cached token has keys and values, but no row to read: rows of a mean and rows that predict a prompt's tokens have to be
        computed, unless they were read before a preemption. The last row is always computed.
        """
        is_done = self.reading in (None, "last") or self.num_read >= self._end_of_reading
        return None if is_done else self.num_read

    @property
    def _end_of_reading(self) -> int:
        return len(self.prompt_ids) - (self.reading == "logprobs")

    def read_request(self, num_tokens: int) -> ReadRequest | None:
        """What to read off its next chunk."""
        if self.reading is None:
            return None
        last_only = self._end_of_reading - 1 if self.reading == "last" else 0
        first = max(self.num_computed, self.num_read, last_only)
        num_rows = min(self.num_computed + num_tokens, self._end_of_reading) - first
        if num_rows <= 0:
            return None
        is_logprobs = self.reading == "logprobs"
        return ReadRequest(
            kind=self.reading,
            first=first,
            num_rows=num_rows,
            next_ids=self.prompt_ids[first + 1 : first + 1 + num_rows] if is_logprobs else (),
            num_top=(self.params.prompt_logprobs or 0) if is_logprobs else 0,
            total=self.pooled,
        )

    def take_reading(self, request: ReadRequest, result: StepResult) -> tuple[SampledToken, ...]:
        """Note what was read; returns the log-probabilities among it."""
        self.num_read = request.first + request.num_rows
        if request.kind == "logprobs":
            return result.prompt_logprobs[self.seq_id]
        self.pooled = result.pooled[self.seq_id]
        return ()

    def token_ids(self) -> Sequence[int]:
        """All known tokens; the prompt itself while there is nothing else."""
        return [*self.prompt_ids, *self.output_ids] if self.output_ids else self.prompt_ids

    def slice_ids(self, start: int, num_tokens: int) -> list[int]:
        """Tokens ``[start, start + num_tokens)`` without copying the rest."""
        split = len(self.prompt_ids)
        end = start + num_tokens
        return [*self.prompt_ids[start:end], *self.output_ids[max(start - split, 0) : max(end - split, 0)]]

    def natural_end(self, eos_ids: frozenset[int]) -> tuple[FinishReason, int | None] | None:
        """Reason and stop token if the last output token ends the text. The first ``min_tokens`` tokens never stop it."""
        last = self.output_ids[-1]
        is_stop = last in self.params.stop_token_ids or (last in eos_ids and not self.params.ignore_eos)
        if is_stop and len(self.output_ids) > self.params.min_tokens:
            return "stop", last
        return ("length", None) if len(self.output_ids) >= self.max_tokens else None

    def view(self) -> SequenceView:
        """What planners see of it."""
        return SequenceView(
            seq_id=self.seq_id,
            num_prompt_tokens=len(self.prompt_ids),
            num_tokens=self.num_tokens,
            num_computed=self.num_computed,
            priority=self.priority,
            arrival=self.arrival,
            arrival_s=self.arrival_s,
            num_slots=self.num_slots,
            max_tokens=self.max_tokens,
            expected_tokens=self.expected_tokens,
        )


def salt_of(cache_salt: str, adapter: str) -> str:
    """Who may share a prefix: requests of the same salt and the same adapter, whose KV is the same."""
    return f"{cache_salt}\0{adapter}" if adapter else cache_salt


def new_family(
    request: EngineRequest,
    num_sequences: int,
    *,
    client: ClientShare,
    max_tokens: int,
    seed: int,
    arrival: int,
    now_s: float,
    max_slots: int,
) -> list[SequenceState]:
    """The sequences of a new request, each with a seed of its own; attributes as in `SequenceState`."""
    deadline_s = float("inf") if request.deadline_s is None else now_s + request.deadline_s
    return [
        SequenceState(
            seq_id=f"{request.request_id}/{index}",
            request_id=request.request_id,
            index=index,
            prompt_ids=request.prompt_ids,
            params=request.params,
            max_tokens=max_tokens,
            expected_tokens=min(request.expected_tokens or max_tokens, max_tokens),
            seed=derive_seed(seed, index),
            cache_salt=salt_of(request.cache_salt, request.adapter),
            adapter=request.adapter,
            priority=request.priority,
            client=client,
            deadline_s=deadline_s,
            arrival=arrival,
            arrival_s=now_s,
            since_s=now_s,
            max_slots=max_slots,
        )
        for index in range(num_sequences)
    ]
