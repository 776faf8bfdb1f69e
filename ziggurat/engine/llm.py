# SPDX-License-Identifier: Apache-2.0
"""`LLM`: the Python API. Synchronous, in the caller's thread, by vLLM's names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeAlias

from ziggurat.engine.chat_template import Message, missing_template
from ziggurat.engine.config import EMBEDDED_MODEL, EngineConfig
from ziggurat.engine.engine import Engine
from ziggurat.engine.types import FinishReason, GenerateOutput, GenerateRequest
from ziggurat.errors import ConfigError, EngineError, QueueFull, RequestError
from ziggurat.registry import nearest
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
        num_cached_tokens: prompt tokens whose KV was there already.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    metrics: RequestMetrics
    num_cached_tokens: int = 0


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
        requests = [self._request(prompt, each) for prompt, each in zip(many, params, strict=True)]
        return self._run(many, requests)

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

    def _request(self, prompt: Prompt, params: SamplingParams) -> GenerateRequest:
        if isinstance(prompt, str):
            tokenizer = self.engine.tokenizer
            if tokenizer is None:
                raise RequestError("this model has no tokenizer; give the prompt as token ids", param="prompt")
            ids: Sequence[int] = tokenizer.encode(prompt)
        else:
            ids = list(prompt)
        self._num_requests += 1
        return GenerateRequest(request_id=f"llm-{self._num_requests}", prompt_ids=ids, params=params)

    def _run(self, prompts: Sequence[Prompt], requests: Sequence[GenerateRequest]) -> list[RequestOutput]:
        """Feeds the queue as it empties; results come back in the order of the prompts."""
        results: dict[str, RequestOutput] = {}
        waiting = list(reversed(list(zip(prompts, requests, strict=True))))
        try:
            while waiting or self.engine.has_work:
                while waiting and self._has_added(*waiting[-1], results):
                    waiting.pop()
                for output in self.engine.step():
                    _take(results[output.request_id], output, self.engine.now())
        except BaseException:
            # Whatever ends the call, an interrupt included, nothing of it stays in the engine.
            for request_id in results:
                self.engine.abort(request_id)
            self.engine.step()
            raise
        return [results[request.request_id] for request in requests]

    def _has_added(self, prompt: Prompt, request: GenerateRequest, results: dict[str, RequestOutput]) -> bool:
        try:
            self.engine.add(request)
        except QueueFull:
            return False
        results[request.request_id] = RequestOutput(
            request_id=request.request_id,
            prompt=prompt if isinstance(prompt, str) else None,
            prompt_token_ids=list(request.prompt_ids),
            outputs=[
                CompletionOutput(index=index, logprobs=None if request.params.logprobs is None else [])
                for index in range(request.params.n)
            ],
            metrics=RequestMetrics(arrival_s=self.engine.now()),
        )
        return True


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


__all__ = ["LLM", "CompletionOutput", "RequestMetrics", "RequestOutput"]
