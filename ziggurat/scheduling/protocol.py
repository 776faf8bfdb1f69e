# SPDX-License-Identifier: Apache-2.0
"""The plain data between deciding, running and recording, and the protocols of planners and executors.

Three beats per step: a `BatchPlanner` decides a `BatchPlan` from an `EngineState`; `EngineCore` takes the space and an `Executor`
runs the resulting `Batch`; the core records its `StepResult`. Real, null and simulated executors see the same Batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from ziggurat.errors import ConfigError
from ziggurat.memory.kv import CopyOp, KVView
from ziggurat.memory.swap import MoveOp
from ziggurat.scheduling.sampling import SamplingParams

Pooling = Literal["mean", "last"]
"""How the rows of a text become its embedding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceView:
    """What a planner may know of one sequence.

    Attributes:
        num_tokens: prompt plus generated tokens so far (after preemption all of them are recomputed).
        num_computed: tokens whose KV is there, cached ones included; 0 while waiting.
        num_prompt_tokens: of the original prompt.
        arrival: order of arrival (a sequence number, not a time); lower came first.
        arrival_s: time of arrival by the driver's clock.
        num_slots: sequence slots that it takes while it runs: 1, or more for a prompt with n > 1 whose forks are still to come
            (at most ``TokenBudget.max_num_seqs``; forks beyond that are born waiting).
        max_tokens: the most it may generate; for planners that reserve space to the end. 0 for one that never samples (an embedding).
        expected_tokens: how long its text is expected to be; at most ``max_tokens``, which it is unless somebody knows better.
    """

    seq_id: str
    num_prompt_tokens: int
    num_tokens: int
    num_computed: int
    priority: int
    arrival: int
    arrival_s: float
    num_slots: int = 1
    max_tokens: int = 1
    expected_tokens: int = 1

    @property
    def num_uncomputed(self) -> int:
        """Tokens to compute before the next one can be sampled; 1 for a decode."""
        return self.num_tokens - self.num_computed


class KVProbe(Protocol):
    """Questions about space that change nothing. Tuples have one entry per KV group."""

    def free_blocks(self) -> tuple[int, ...]:
        """Blocks to be had now."""
        ...

    def total_blocks(self) -> tuple[int, ...]:
        """Size of the pools."""
        ...

    def needed_blocks(self, seq_id: str, num_tokens: int) -> tuple[int, ...]:
        """For a running sequence: blocks that its next ``num_tokens`` tokens take."""
        ...

    def needed_to_admit(self, seq_id: str, num_tokens: int) -> tuple[int, ...]:
        """For a waiting sequence: blocks that leave the free count when it is admitted and given ``num_tokens`` uncached tokens."""
        ...

    def peak_blocks(self, num_tokens: int) -> tuple[int, ...]:
        """The most blocks a lone sequence that grows to ``num_tokens`` ever holds at once (windows give blocks back on the way)."""
        ...

    def cached_tokens(self, seq_id: str) -> int:
        """For a waiting sequence: prefix tokens that are cached now."""
        ...

    def held_blocks(self, seq_id: str) -> tuple[int, ...]:
        """For a running sequence: blocks that preempting it gives back."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenBudget:
    """Limits of one step. ``max_num_seqs`` bounds the running sequences, forks to come included (`SequenceView.num_slots`)."""

    max_num_batched_tokens: int
    max_num_seqs: int

    def check(self) -> None:
        """
        Raises:
            ConfigError: it cannot hold a decode of every sequence and one prompt token.
        """
        if self.max_num_seqs < 1 or self.max_num_batched_tokens < self.max_num_seqs + 1:
            raise ConfigError(
                f"max_num_batched_tokens {self.max_num_batched_tokens} must be at least max_num_seqs + 1 = "
                f"{self.max_num_seqs + 1}: decodes alone would fill every step and no prompt could start"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineState:
    """A planner's whole world. Both lists are in the order of the scheduling policy; under ``fcfs`` that is the order of arrival.

    A planner that needs space takes it from the end of ``running`` and admits from the front of ``waiting``.

    ``waiting`` makes its views on the way: walk it from the front and stop early. Valid during one ``plan`` call.
    """

    running: Sequence[SequenceView]
    waiting: Sequence[SequenceView]
    kv: KVProbe
    now_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """``num_tokens`` (at least one) of a sequence's uncomputed tokens run in this step."""

    seq_id: str
    num_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPlan:
    """A decision: who is preempted first, who is admitted, who runs how many tokens.

    The core carries it out in this order: preempt, admit all, take space chunk by chunk. A plan that preempts admits nobody,
    because blocks shared with a victim change their price when it leaves.

    Attributes:
        preempts: running sequences that give up their space and go back to the head of the queue; the one named last stands first.
        admits: waiting sequences that become running, in order; each has a chunk in this plan.
        chunks: in batch order.
        valid_steps: how many steps the plan holds if nothing arrives or ends; 1 for now everywhere.
    """

    preempts: tuple[str, ...] = ()
    admits: tuple[str, ...] = ()
    chunks: tuple[Chunk, ...] = ()
    valid_steps: int = 1


class BatchPlanner(Protocol):
    """Which request gets how many tokens this step. Pure: same state, same plan."""

    def plan(self, state: EngineState, budget: TokenBudget) -> BatchPlan:
        """Decide the next step. An empty plan means that nothing can run now."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRequest:
    """Sample the next token of a sequence from the last row of its chunk.

    Attributes:
        seq_ids: usually the chunk's own sequence; when a prompt with n > 1 is finished, all n (each draws its own token).
        seeds: one per entry of seq_ids, in [0, 2**63). A draw is a function of (seed, len(output_ids)) and of the logits only.
        prompt_ids, output_ids: for penalties; not copied, not to be changed.
        eos_ids: with ``params.stop_token_ids``, suppressed while ``len(output_ids) < params.min_tokens``; empty with ignore_eos.
    """

    seq_ids: tuple[str, ...]
    seeds: tuple[int, ...]
    params: SamplingParams
    prompt_ids: Sequence[int]
    output_ids: Sequence[int]
    eos_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadRequest:
    """What to read off prompt rows of a chunk beside the next token. Executors do it in pieces, so that no buffer grows with it.

    Attributes:
        kind: ``logprobs`` of the tokens that follow each row, or the hidden states after the final norm, pooled.
        first: position of the first row; the chunk has it and the ``num_rows - 1`` behind it.
        next_ids: for ``logprobs``: the tokens behind the rows, one per row.
        num_top: for ``logprobs``: alternatives to report.
        total: for ``mean``: the sum of all rows before ``first``, None if there are none. Not changed: a failed step leaves it.
    """

    kind: Literal["logprobs"] | Pooling
    first: int
    num_rows: int
    next_ids: Sequence[int] = ()
    num_top: int = 0
    total: Sequence[float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchItem:
    """One sequence's part of a step.

    Attributes:
        token_ids: the chunk's tokens; the first has position ``start``.
        kv: its tables; space for the chunk is already there.
        sample: how to sample after the chunk, or None when the prompt is not finished by it, or nothing is ever sampled.
        read: what to read off the chunk's rows, if anything.
        adapter: the LoRA adapter that its rows run with; "" is none.
    """

    seq_id: str
    token_ids: Sequence[int]
    start: int
    kv: KVView
    sample: SampleRequest | None
    read: ReadRequest | None = None
    adapter: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One step for an executor: moves to and from the swap space first, then copies, each in their order, then all items in one ragged
    forward."""

    step: int
    copies: tuple[CopyOp, ...]
    items: tuple[BatchItem, ...]
    moves: tuple[MoveOp, ...] = ()

    @property
    def num_tokens(self) -> int:
        """Tokens of all chunks."""
        return sum(len(item.token_ids) for item in self.items)


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledToken:
    """One sampled token; ``logprob`` and ``top_logprobs`` (best first) are filled when the request asked for them.

    Also a token of a prompt that was scored; that has a ``rank`` too: 1 if no token was more likely.
    """

    token_id: int
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()
    rank: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """What came out of a step: for every sequence named in the batch's sample requests one token, or why it has none.

    Attributes:
        prompt_logprobs: per sequence with a read request of that kind, one entry per row.
        pooled: per sequence with a read request of another kind, fp32 [hidden]: the sum of all rows so far (``mean``), or the row.
            Belongs to the receiver.
        errors: message per sequence that cannot go on (its logits are not numbers); the others of the step are not affected.
    """

    tokens: dict[str, SampledToken]
    errors: Mapping[str, str] = field(default_factory=dict)
    prompt_logprobs: Mapping[str, tuple[SampledToken, ...]] = field(default_factory=dict)
    pooled: Mapping[str, Sequence[float]] = field(default_factory=dict)


class Executor(Protocol):
    """Runs batches. The executor owns tensors; the core owns decisions."""

    def run(self, batch: Batch) -> StepResult:
        """Execute one step.

        Raises:
            EngineError: the step failed. Whatever is raised, the core ends the batch's sequences as failed, takes their space
                back and reports it in `StepOutput.error`; other sequences go on.
        """
        ...
