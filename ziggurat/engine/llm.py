# SPDX-License-Identifier: Apache-2.0
"""`LLM`: the Python API. Synchronous, in the caller's thread, by vLLM's names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeAlias, TypeVar

from ziggurat.engine.chat_template import Message, missing_template
from ziggurat.engine.config import EMBEDDED_MODEL, EngineConfig
from ziggurat.engine.embedding import EmbeddingOutput, EmbeddingRequestOutput
from ziggurat.engine.engine import Engine
from ziggurat.engine.ranking import Ranking
from ziggurat.engine.types import EmbedRequest, FinishReason, GenerateOutput, GenerateRequest
from ziggurat.errors import ConfigError, EngineError, QueueFull, RequestError
from ziggurat.registry import nearest
from ziggurat.scheduling.protocol import Pooling, SampledToken
from ziggurat.scheduling.sampling import SamplingParams

Prompt: TypeAlias = str | Sequence[int]
Logprobs: TypeAlias = list[dict[int, float]]
"""Per token: token id -> log-probability, of the sampled token and of the alternatives asked for."""
R = TypeVar("R", GenerateRequest, EmbedRequest)


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
class _Generation:
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


class LLM:
    """A model in this process, for batches of prompts.

    Args:
        model: ``embedded``, a folder, or ``org/name``.
        memory: what the process may add over its baseline, for example ``"1GiB"``; None takes what the machine has.
        settings: any field of `EngineConfig`.

    Raises:
        ConfigError: unknown or invalid setting; ModelError, DoesNotFit: see `Engine.load`.

    Use it as a context manager, or call `close`, to give the memory back.
    """

    def __init__(self, model: str = EMBEDDED_MODEL, memory: str | int | None = None, **settings: Any) -> None:
        known = [each.name for each in fields(EngineConfig)]
        for name in settings:
            if name not in known:
                raise ConfigError(f"LLM has no setting {name!r}{nearest(name, known) or '.'} Known: {', '.join(known)}")
        self.engine = Engine.load(EngineConfig(model=model, memory=memory, **settings))
        self._num_requests = 0

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[RequestOutput]:
        """Continue one prompt or many, given as text or as token ids; answers come in the order of the prompts.

        Args:
            sampling_params: one for all or one per prompt; by default what the checkpoint's generation_config.json says.

        Raises:
            RequestError: a prompt or a setting is wrong; nothing of the call goes on running.
            EngineError: a step failed.
        """
        many = _as_prompts(prompts)
        params = self._params(sampling_params, len(many))
        requests = [
            GenerateRequest(request_id=self._new_id(), prompt_ids=self._ids(prompt), params=each)
            for prompt, each in zip(many, params, strict=True)
        ]
        results: dict[str, _Generation] = {}
        prompt_of = {request.request_id: prompt for request, prompt in zip(requests, many, strict=True)}

        def on_added(request: GenerateRequest) -> None:
            result = _new_result(request, prompt_of[request.request_id], self.engine.now())
            results[request.request_id] = _Generation(result)

        self._run(requests, on_added, lambda output: results[output.request_id].take(output, self.engine.now()))
        return [results[request.request_id].finish(request.params) for request in requests]

    def embed(
        self, texts: Prompt | Sequence[Prompt], *, pooling: Pooling = "mean", normalize: bool = True
    ) -> list[EmbeddingRequestOutput]:
        """Embed one text or many, given as text or as token ids; answers come in the order of the texts.

        Args:
            pooling: ``mean`` of the hidden states after the final norm, or those of the ``last`` token. A mean computes every token
                of every text; ``last`` reuses cached prefixes.
            normalize: scale to length 1.

        Raises:
            RequestError: a text is empty or too long, or a setting is wrong; nothing of the call goes on running.
            EngineError: a step failed.
        """
        many = _as_prompts(texts)
        requests = [
            EmbedRequest(request_id=self._new_id(), prompt_ids=self._ids(text), pooling=pooling, normalize=normalize)
            for text in many
        ]
        outputs: dict[str, GenerateOutput] = {}

        def take(output: GenerateOutput) -> None:
            if output.embedding is None:
                raise EngineError(output.error or f"request {output.request_id} failed")
            outputs[output.request_id] = output

        self._run(requests, lambda request: None, take)
        return [
            EmbeddingRequestOutput(
                request_id=request.request_id,
                prompt=text if isinstance(text, str) else None,
                prompt_token_ids=list(request.prompt_ids),
                outputs=EmbeddingOutput(embedding=list(outputs[request.request_id].embedding or ())),
                num_cached_tokens=outputs[request.request_id].num_cached_tokens,
            )
            for request, text in zip(requests, many, strict=True)
        ]

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Answer one conversation or many; each is a list of messages ``{"role": .., "content": ..}``.

        Raises:
            RequestError: the model has no chat template, or the template refuses the messages; and as `generate`.
        """
        template, tokenizer = self.engine.chat_template, self.engine.tokenizer
        if template is None or tokenizer is None:
            raise missing_template(self.engine.model.name)
        conversations: Any = [messages] if not messages or isinstance(messages[0], Mapping) else messages
        texts = [
            template.render(
                conversation,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                tools=tools,
                **(chat_template_kwargs or {}),
            )
            for conversation in conversations
        ]
        # The template has written the special tokens already.
        prompts = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
        outputs = self.generate(prompts, sampling_params)
        for output, text in zip(outputs, texts, strict=True):
            output.prompt = text
        return outputs

    def close(self) -> None:
        """Give all memory back."""
        self.engine.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _params(
        self, asked: SamplingParams | Sequence[SamplingParams] | None, num_prompts: int
    ) -> Sequence[SamplingParams]:
        if asked is None:
            asked = SamplingParams(**self.engine.model.sampling_defaults)
        if isinstance(asked, SamplingParams):
            return [asked] * num_prompts
        if len(asked) != num_prompts:
            raise RequestError(
                f"{len(asked)} sampling parameters for {num_prompts} prompts: give one for all, or one for each",
                param="sampling_params",
            )
        return asked

    def _new_id(self) -> str:
        self._num_requests += 1
        return f"llm-{self._num_requests}"

    def _ids(self, prompt: Prompt) -> Sequence[int]:
        if not isinstance(prompt, str):
            return list(prompt)
        if self.engine.tokenizer is None:
            raise RequestError("this model has no tokenizer; give the prompt as token ids", param="prompt")
        return self.engine.tokenizer.encode(prompt)

    def _run(
        self, requests: Sequence[R], on_added: Callable[[R], None], take: Callable[[GenerateOutput], None]
    ) -> None:
        """Feeds the queue as it empties, until every request has ended."""
        added: list[str] = []
        waiting = list(reversed(requests))
        try:
            while waiting or self.engine.has_work:
                while waiting and self._has_added(waiting[-1]):
                    request = waiting.pop()
                    added.append(request.request_id)
                    on_added(request)
                for output in self.engine.step():
                    take(output)
        except BaseException:
            # Whatever ends the call, an interrupt included, nothing of it stays in the engine.
            for request_id in added:
                self.engine.abort(request_id)
            self.engine.step()
            raise

    def _has_added(self, request: GenerateRequest | EmbedRequest) -> bool:
        try:
            self.engine.add(request)
        except QueueFull:
            return False
        return True


def _new_result(request: GenerateRequest, prompt: Prompt, now_s: float) -> RequestOutput:
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


def _as_prompts(prompts: Prompt | Sequence[Prompt]) -> Sequence[Prompt]:
    if isinstance(prompts, str):
        return [prompts]
    if prompts and isinstance(prompts[0], int):
        return [prompts]  # type: ignore[list-item]
    return prompts  # type: ignore[return-value]


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


__all__ = ["LLM", "CompletionOutput", "EmbeddingOutput", "EmbeddingRequestOutput", "RequestMetrics", "RequestOutput"]
