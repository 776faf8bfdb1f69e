# SPDX-License-Identifier: Apache-2.0
"""What comes out of the core: events of one step, and counters since the start. Plain data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ziggurat.errors import EngineError
from ziggurat.scheduling.protocol import SampledToken
from ziggurat.scheduling.sequence import FinishReason


@dataclass(frozen=True, slots=True, kw_only=True)
class NewToken:
    """One token of one sequence; ``is_first`` marks the first of its output."""

    seq_id: str
    token: SampledToken
    is_first: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptLogprobs:
    """Log-probabilities of the next tokens of a prompt, those of one chunk; the first token of a prompt has none. Each comes once."""

    seq_id: str
    tokens: tuple[SampledToken, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """A waiting sequence became running.

    Attributes:
        num_cached_tokens: prefix tokens that need not be computed.
        is_readmission: it had been running before and was preempted.
        miss_reason: why nothing was reused, one line, if the store can tell.
    """

    seq_id: str
    request_id: str
    num_cached_tokens: int
    is_readmission: bool
    miss_reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A sequence has ended; there is exactly one of these per admitted sequence.

    Attributes:
        index: which of the request's n continuations.
        stop_token_id: the token that ended it, if one did.
        error: message when the reason is ``error``.
        num_cached_tokens: prompt tokens found cached at the first admission.
        is_request_done: no continuation of the request is left.
        pooled: of an embedding that ended with ``stop``: fp32 [hidden], the sum of its rows (``mean``) or its last row.
    """

    seq_id: str
    request_id: str
    index: int
    reason: FinishReason
    stop_token_id: int | None
    error: str | None
    num_prompt_tokens: int
    num_cached_tokens: int
    num_output_tokens: int
    num_preemptions: int
    is_request_done: bool
    pooled: Sequence[float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOutput:
    """What one step did. The driver hands tokens and endings to the clients.

    Attributes:
        step: number of the step, from 0.
        tokens: new tokens in batch order.
        prompt_logprobs: of prompts that are scored, chunk by chunk, in batch order.
        finished: sequences that ended in this step; those ended by `EngineCore.abort` or `EngineCore.finish` were returned there.
        num_batched_tokens, num_batched_seqs: size of the batch that ran.
        error: the executor failed; the batch's sequences are in ``finished`` with reason ``error``, the rest goes on.
    """

    step: int
    tokens: tuple[NewToken, ...] = ()
    prompt_logprobs: tuple[PromptLogprobs, ...] = ()
    finished: tuple[Finished, ...] = ()
    admitted: tuple[Admission, ...] = ()
    preempted: tuple[str, ...] = ()
    num_batched_tokens: int = 0
    num_batched_seqs: int = 0
    error: EngineError | None = None


@dataclass(slots=True)
class Counters:
    """Totals since the core was made.

    Attributes:
        prefix_queried_tokens, prefix_hit_tokens: prompt tokens looked up in the prefix forest at first admission, and found there.
        recomputed_tokens: tokens computed again after preemption (cached ones are not).
        swapped_out_tokens, swapped_in_tokens: tokens whose KV was copied to the swap space, and back instead of being computed again.
        stalls: times that nothing could run although something was there; its head request was ended with an error. Stays 0
            unless the pool shrank below what was promised at admission.
    """

    steps: int = 0
    requests: int = 0
    sequences: int = 0
    finished: Counter[str] = field(default_factory=Counter)
    computed_tokens: int = 0
    recomputed_tokens: int = 0
    swapped_out_tokens: int = 0
    swapped_in_tokens: int = 0
    generated_tokens: int = 0
    prefix_queried_tokens: int = 0
    prefix_hit_tokens: int = 0
    preemptions: int = 0
    failed_steps: int = 0
    stalls: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Plain data for /memory and /metrics."""
        plain = {name: getattr(self, name) for name in self.__slots__}
        return plain | {"finished": dict(sorted(self.finished.items()))}
