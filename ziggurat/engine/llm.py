# SPDX-License-Identifier: Apache-2.0
"""`LLM`: the Python API. Synchronous, in the caller's thread, by vLLM's names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeVar

from ziggurat.engine.chat_template import Message, missing_template
from ziggurat.engine.config import EMBEDDED_MODEL, EngineConfig
from ziggurat.engine.embedding import EmbeddingOutput, EmbeddingRequestOutput
from ziggurat.engine.engine import Engine
from ziggurat.engine.job import JobRun
from ziggurat.engine.llm_output import (
    CompletionOutput,
    Generating,
    Prompt,
    PromptJob,
    RequestMetrics,
    RequestOutput,
    new_result,
)
from ziggurat.engine.types import EmbedRequest, GenerateOutput, GenerateRequest
from ziggurat.errors import ConfigError, EngineError, QueueFull, RequestError
from ziggurat.registry import nearest
from ziggurat.scheduling.protocol import Pooling
from ziggurat.scheduling.sampling import SamplingParams

R = TypeVar("R", GenerateRequest, EmbedRequest)


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
        *,
        adapter: str = "",
    ) -> list[RequestOutput]:
        """Continue one prompt or many, given as text or as token ids; answers come in the order of the prompts.

        Args:
            sampling_params: one for all or one per prompt; by default what the checkpoint's generation_config.json says.
            adapter: a LoRA adapter by its name in ``lora_modules``; "" is the base model.

        Raises:
            RequestError: a prompt or a setting is wrong; nothing of the call goes on running.
            EngineError: a step failed.
        """
        many = _as_prompts(prompts)
        params = self._params(sampling_params, len(many))
        requests = [
            GenerateRequest(request_id=self._new_id(), prompt_ids=self._ids(prompt), params=each, adapter=adapter)
            for prompt, each in zip(many, params, strict=True)
        ]
        results: dict[str, Generating] = {}
        prompt_of = {request.request_id: prompt for request, prompt in zip(requests, many, strict=True)}

        def on_added(request: GenerateRequest) -> None:
            result = new_result(request, prompt_of[request.request_id], self.engine.now())
            results[request.request_id] = Generating(result)

        self._run(requests, on_added, lambda output: results[output.request_id].take(output, self.engine.now()))
        return [results[request.request_id].finish(request.params) for request in requests]

    def batch(
        self,
        prompts: Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        expected_output_tokens: int | None = None,
    ) -> list[RequestOutput]:
        """As `generate`, for many prompts that are all known: those that share a beginning run together, in an order made for the end
        of the whole (`ziggurat.scheduling.job`). ``planner="memory-centric"`` suits it. Answers come in the order of the prompts.

        Args:
            expected_output_tokens: how long texts are on average; by default their ``max_tokens``.

        Raises:
            RequestError: see `generate`; a prompt that is too long ends the call.
            EngineError: a step failed.
        """
        many = _as_prompts(prompts)
        params = self._params(sampling_params, len(many))
        requests = [
            GenerateRequest(
                request_id=self._new_id(),
                prompt_ids=self._ids(prompt),
                params=each,
                expected_tokens=expected_output_tokens,
            )
            for prompt, each in zip(many, params, strict=True)
        ]
        job = PromptJob(requests, many, self.engine.now)
        JobRun(self.engine, job.items, job).run()
        return [job.results[index].finish(each) for index, each in enumerate(params)]

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


def _as_prompts(prompts: Prompt | Sequence[Prompt]) -> Sequence[Prompt]:
    if isinstance(prompts, str):
        return [prompts]
    if prompts and isinstance(prompts[0], int):
        return [prompts]  # type: ignore[list-item]
    return prompts  # type: ignore[return-value]


__all__ = ["LLM", "CompletionOutput", "EmbeddingOutput", "EmbeddingRequestOutput", "RequestMetrics", "RequestOutput"]
