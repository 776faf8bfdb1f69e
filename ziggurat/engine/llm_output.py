# SPDX-License-Identifier: Apache-2.0
"""What `LLM` returns, by vLLM's names, and how outputs of the engine become it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from ziggurat.engine.ranking import Ranking
from ziggurat.engine.types import FinishReason, GenerateOutput, GenerateRequest
from ziggurat.errors import EngineError, RequestError
from ziggurat.scheduling.job import JobItem
from ziggurat.scheduling.protocol import SampledToken
from ziggurat.scheduling.sampling import SamplingParams

Prompt: TypeAlias = str | Sequence[int]
Logprobs: TypeAlias = list[dict[int, float]]
"""Per token: token id -> log-probability, of the sampled token and of the alternatives asked for."""


@dataclass(slots=True, kw_only=True)
class CompletionOutput:
    """One continuation.

    Attributes:
        logprobs: None unless ``SamplingParams.logprobs`` was set.
        stop_reason: the stop string or token id that ended it, if one did.
    """

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: Logprobs | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None


@dataclass(slots=True, kw_only=True)
class RequestMetrics:
    """Times of one request by the engine's clock, seconds.

    Attributes:
        first_token_s: when the first token of any continuation was there; None if there was none.
    """

    arrival_s: float
    first_token_s: float | None = None
    finished_s: float | None = None


@dataclass(slots=True, kw_only=True)
class RequestOutput:
    """A prompt and its continuations.

    Attributes:
        prompt: None when the prompt was given as token ids.
        outputs: in order of their index; with ``best_of``, the n best, best first.
        num_cached_tokens: prompt tokens whose KV was there already.
        prompt_logprobs: None unless ``SamplingParams.prompt_logprobs`` was set; one entry per token of the prompt, None for the first.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    metrics: RequestMetrics
    num_cached_tokens: int = 0
    prompt_logprobs: list[dict[int, float] | None] | None = None


@dataclass(slots=True)
class Generating:
    """A result in the making. All sampled continuations are here; `finish` keeps those that were asked for."""

    result: RequestOutput
    ranking: Ranking = field(default_factory=Ranking)

    def take(self, output: GenerateOutput, now_s: float) -> None:
        """New tokens and endings."""
        self.ranking.add(output.index, output.tokens)
        _take(self.result, output, now_s)

    def finish(self, params: SamplingParams) -> RequestOutput:
        """The n continuations; with ``best_of`` they are numbered by their rank."""
        if params.is_ranked:
            self.result.outputs = [self.result.outputs[index] for index in self.ranking.best(params.n)]
            for rank, completion in enumerate(self.result.outputs):
                completion.index = rank
        return self.result


def new_result(request: GenerateRequest, prompt: Prompt, now_s: float) -> RequestOutput:
    params = request.params
    return RequestOutput(
        request_id=request.request_id,
        prompt=prompt if isinstance(prompt, str) else None,
        prompt_token_ids=list(request.prompt_ids),
        outputs=[
            CompletionOutput(index=index, logprobs=None if params.logprobs is None else [])
            for index in range(params.num_sequences)
        ],
        metrics=RequestMetrics(arrival_s=now_s),
        prompt_logprobs=None if params.prompt_logprobs is None else [None],
    )


def _take(result: RequestOutput, output: GenerateOutput, now_s: float) -> None:
    completion, metrics = result.outputs[output.index], result.metrics
    completion.text += output.text
    completion.token_ids += [token.token_id for token in output.tokens]
    if completion.logprobs is not None:
        completion.logprobs += [_logprobs(token) for token in output.tokens]
    if result.prompt_logprobs is not None:
        result.prompt_logprobs += [_logprobs(token) for token in output.prompt_logprobs]
    result.num_cached_tokens = output.num_cached_tokens
    if output.tokens and metrics.first_token_s is None:
        metrics.first_token_s = now_s
    if output.finish_reason is not None:
        completion.finish_reason, completion.stop_reason = output.finish_reason, output.stop_reason
        metrics.finished_s = now_s
    if output.finish_reason == "error":
        raise EngineError(output.error or f"request {output.request_id} failed")


def _logprobs(token: SampledToken) -> dict[int, float]:
    values = dict(token.top_logprobs)
    if token.logprob is not None:
        values[token.token_id] = token.logprob
    return values


class PromptJob:
    """The prompts of `LLM.batch` as a `JobSource`."""

    def __init__(
        self, requests: Sequence[GenerateRequest], prompts: Sequence[Prompt], now: Callable[[], float]
    ) -> None:
        self._requests, self._prompts, self._now = requests, prompts, now
        self.items = [
            JobItem(
                prompt_ids=request.prompt_ids,
                output_tokens=(request.expected_tokens or request.params.max_tokens or 1)
                * request.params.num_sequences,
                limit_tokens=request.params.max_tokens,
            )
            for request in self._requests
        ]
        self.results: dict[int, Generating] = {}

    def request(self, index: int) -> GenerateRequest:
        request = self._requests[index]
        self.results[index] = Generating(new_result(request, self._prompts[index], self._now()))
        return request

    def on_output(self, index: int, output: GenerateOutput) -> None:
        self.results[index].take(output, self._now())

    def on_refused(self, index: int, error: RequestError) -> None:
        raise error
