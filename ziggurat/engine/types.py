# SPDX-License-Identifier: Apache-2.0
"""What goes into an engine and what comes out, as plain data; torch-free, so that the server's edge can import it cheaply."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

from ziggurat.errors import RequestError
from ziggurat.scheduling.protocol import Pooling, SampledToken
from ziggurat.scheduling.sampling import SamplingParams

FinishReason = Literal["stop", "length", "abort", "error"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateRequest:
    """One prompt with its sampling settings.

    Attributes:
        priority: lower runs earlier; refused unless the scheduling policy is ``priority`` (vLLM's meaning).
        cache_salt: requests share prefixes only with requests of the same salt.
        expected_tokens: how long the text is expected to be; None expects ``max_tokens``. For planners of jobs, never a limit.
        client: whose request it is, for fairness between clients (scheduling policy ``vtc``).
        deadline_s: seconds after its arrival when it should be done, for the scheduling policy ``deadline``; None is no hurry.
        adapter: the LoRA adapter that it is for; "" is the base model.
        session_id: the conversation that it belongs to, the client's own name for it; "" is none.
        keep_s: keep what is cached of the session for so many seconds after this request, if there is room.
    """

    request_id: str
    prompt_ids: Sequence[int]
    params: SamplingParams
    priority: int = 0
    cache_salt: str = ""
    expected_tokens: int | None = None
    client: str = ""
    deadline_s: float | None = None
    adapter: str = ""
    session_id: str = ""
    keep_s: float = 0.0

    def __post_init__(self) -> None:
        if self.keep_s and not self.session_id:
            raise RequestError("keep_s keeps a session: send session_id too", param="keep_s")
        if self.deadline_s is not None and not self.deadline_s > 0:
            raise RequestError(f"deadline_s must be above 0 seconds, got {self.deadline_s}", param="deadline_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedRequest:
    """One text to be embedded. It ends with one output, reason ``stop``, that has the embedding.

    Attributes:
        pooling: ``mean`` of the hidden states after the final norm, or those of the ``last`` token. A cached prefix has keys and
            values but no hidden states, so ``mean`` takes nothing from the prefix cache; ``last`` does.
        normalize: scale to length 1 (a vector of zeros stays as it is).
        priority, cache_salt, client, deadline_s, adapter: as in `GenerateRequest`.
    """

    request_id: str
    prompt_ids: Sequence[int]
    pooling: Pooling = "mean"
    normalize: bool = True
    priority: int = 0
    cache_salt: str = ""
    client: str = ""
    deadline_s: float | None = None
    adapter: str = ""

    params: ClassVar[SamplingParams] = SamplingParams()
    """Nothing is sampled; here so that it can pass for an `EngineRequest`."""
    expected_tokens: ClassVar[None] = None
    session_id: ClassVar[str] = ""

    def __post_init__(self) -> None:
        if self.pooling not in ("mean", "last"):
            raise RequestError(f"pooling must be 'mean' or 'last', got {self.pooling!r}", param="pooling")


AnyRequest: TypeAlias = GenerateRequest | EmbedRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateOutput:
    """New text of one continuation since the last output.

    Attributes:
        index: which of the ``n`` continuations.
        text: newly decoded text; may be empty while a character or a stop string is incomplete.
        tokens: the sampled tokens behind it, in order.
        finish_reason: None until the last output of this continuation.
        stop_reason: the stop string or token id that ended it, if one did.
        num_prompt_tokens, num_cached_tokens, num_output_tokens: totals so far, for ``usage``.
        error: message when finish_reason is ``error``.
        queue_s: seconds from arrival to first scheduling, once that is known.
        prompt_logprobs: with the first output of continuation 0, if they were asked for: of every token of the prompt but the first.
            Prompts that are scored at a time take at most half of the planner's reserve (`ziggurat.engine.scores`).
        embedding: of an `EmbedRequest`, with its last output: fp32 [hidden].
    """

    request_id: str
    index: int
    text: str
    tokens: tuple[SampledToken, ...]
    finish_reason: FinishReason | None
    stop_reason: str | int | None
    num_prompt_tokens: int
    num_cached_tokens: int
    num_output_tokens: int
    error: str | None = None
    queue_s: float | None = None
    prompt_logprobs: tuple[SampledToken, ...] = ()
    embedding: Sequence[float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetChange:
    """What a change of the budget did.

    Attributes:
        before_bytes, after_bytes: ``--memory`` as it was and is.
        num_blocks: KV blocks per group from now on.
        num_preempted: sequences that gave up their space; they go on when there is some.
        num_evicted_blocks: cached blocks that were forgotten.
    """

    before_bytes: int
    after_bytes: int
    num_blocks: tuple[int, ...]
    num_preempted: int
    num_evicted_blocks: int
