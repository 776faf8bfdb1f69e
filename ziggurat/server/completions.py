# SPDX-License-Identifier: Apache-2.0
"""POST /v1/completions: text or token ids in, one or many prompts, choices numbered prompt by prompt."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from ziggurat.engine.ranking import Ranking
from ziggurat.engine.types import GenerateOutput
from ziggurat.scheduling.masks import LogitsMask
from ziggurat.scheduling.protocol import SampledToken
from ziggurat.server.body import parse_body
from ziggurat.server.fields import COMPLETION_UNSUPPORTED
from ziggurat.server.generation import Generation, Outputs, stop_reason
from ziggurat.server.logprobs import CompletionLogprobs, prompt_logprobs
from ziggurat.server.params import sampling_params
from ziggurat.server.schemas import CompletionRequest
from ziggurat.server.service import ModelText
from ziggurat.server.serving import Reply, Rooms, answer, check_model, new_id, off_loop
from ziggurat.server.sse import ChunkFrame
from ziggurat.server.structured import allowed_tokens, language_of


def make_router(rooms: Rooms) -> APIRouter:
    """The route of completions."""
    router = APIRouter()

    @router.post("/v1/completions", summary="Text completion, OpenAI-compatible")
    async def completions(request: Request) -> Response:
        service = rooms.state.ready_service()
        with rooms.bodies.hold() as held:
            body = await parse_body(
                request, held, CompletionRequest, COMPLETION_UNSUPPORTED, max_model_len=service.max_model_len
            )
            model = check_model(service, body.model)
            size = sum(len(prompt) for prompt in body.prompt)
            prompts, echoes = await off_loop(lambda: encode_prompts(service, body), size)

        spec = language_of(body)
        mask: LogitsMask | None = allowed_tokens(body, service.vocab_size)
        if spec is not None:
            mask = await service.compile_grammar(spec, body.output_limit, "none")
        params = sampling_params(body, service.default_sampling, mask)

        def make_reply(request_id: str, created_unix_s: int) -> Reply:
            head = {"id": request_id, "object": "text_completion", "created": created_unix_s, "model": model}
            writer = CompletionWriter(service, body, head, prompts, echoes, mask)
            return Reply(collect=writer.collect, stream=writer.stream)

        return await answer(rooms, request, body, new_id("cmpl", body.request_id), prompts, params, make_reply)

    return router


def encode_prompts(service: ModelText, body: CompletionRequest) -> tuple[list[list[int]], list[str]]:
    """Token ids of every prompt, and the text that ``echo`` puts before its answers."""
    has_special = body.add_special_tokens is not False
    prompts = [
        body.kept(service.encode(prompt, add_special_tokens=has_special) if isinstance(prompt, str) else prompt)
        for prompt in body.prompt
    ]
    if not body.echo:
        return prompts, [""] * len(prompts)
    if body.truncate_prompt_tokens is not None:
        return prompts, [service.decode(prompt) for prompt in prompts]
    return prompts, [prompt if isinstance(prompt, str) else service.decode(prompt) for prompt in body.prompt]


@dataclass(slots=True)
class _Prompt:
    """What has come for one prompt: per continuation its text, tokens and end; the prompt's own log-probabilities."""

    texts: dict[int, list[str]] = field(default_factory=dict)
    tokens: dict[int, list[SampledToken]] = field(default_factory=dict)
    ends: dict[int, GenerateOutput] = field(default_factory=dict)
    scored: list[SampledToken] = field(default_factory=list)
    ranking: Ranking = field(default_factory=Ranking)

    def add(self, output: GenerateOutput) -> None:
        self.texts.setdefault(output.index, []).append(output.text)
        self.tokens.setdefault(output.index, []).extend(output.tokens)
        self.scored += output.prompt_logprobs
        self.ranking.add(output.index, output.tokens)
        if output.finish_reason is not None:
            self.ends[output.index] = output


class CompletionWriter:
    """Turns a generation into OpenAI's text completion objects.

    Args:
        prompts: token ids per prompt.
        echoes: per prompt, the text that comes before its answers.
        mask: what the answers are held to.
    """

    def __init__(
        self,
        service: ModelText,
        body: CompletionRequest,
        head: dict[str, Any],
        prompts: Sequence[Sequence[int]],
        echoes: Sequence[str],
        mask: LogitsMask | None = None,
    ) -> None:
        self._service = service
        self._body = body
        self._head = head
        self._prompts = prompts
        self._echoes = echoes
        self._mask = mask
        self._logprobs: dict[int, CompletionLogprobs] = {}
        if body.logprobs is not None:
            num_choices = len(echoes) * body.num_choices
            self._logprobs = {index: CompletionLogprobs(service, body.logprobs) for index in range(num_choices)}

    async def collect(self, generation: Outputs) -> dict[str, Any]:
        """The ``text_completion`` object, once every choice has ended. With ``best_of`` choices are numbered by their rank."""
        found = [_Prompt() for _ in self._prompts]
        async for prompt_index, output in generation.outputs():
            found[prompt_index].add(output)
        num_choices, is_ranked = self._body.num_choices, self._body.num_sequences > self._body.num_choices
        choices = []
        for prompt_index, prompt in enumerate(found):
            kept = prompt.ranking.best(num_choices) if is_ranked else sorted(prompt.texts)
            for rank, number in enumerate(kept):
                choices.append(self._choice(prompt_index, prompt_index * num_choices + rank, prompt, number))
        return {**self._head, "choices": choices, "usage": generation.usage.to_json()}

    def _choice(self, prompt_index: int, index: int, prompt: _Prompt, number: int) -> dict[str, Any]:
        logprobs = None
        if self._logprobs:
            lists = self._prompt_lists(prompt_index, index, prompt.scored)
            logprobs = _joined(lists, self._logprobs[index].take(prompt.tokens[number]))
        choice = {
            "index": index,
            "text": self._echoes[prompt_index] + "".join(prompt.texts[number]),
            "logprobs": logprobs,
            "finish_reason": prompt.ends[number].finish_reason,
            "stop_reason": stop_reason(prompt.ends[number], self._mask),
        }
        if self._body.prompt_logprobs is not None:
            choice["prompt_logprobs"] = prompt_logprobs(self._service, prompt.scored, self._body.prompt_logprobs)
        return choice

    def _prompt_lists(self, prompt_index: int, index: int, scored: Sequence[SampledToken]) -> dict[str, Any] | None:
        """Log-probabilities of an echoed prompt, for one of its choices."""
        if not (self._body.echo and self._logprobs):
            return None
        first_id, echo = self._prompts[prompt_index][0], self._echoes[prompt_index]
        return self._logprobs[index].take_prompt(first_id, scored, len(echo))

    async def stream(self, generation: Generation) -> AsyncIterator[bytes]:
        """Echo, text, finish reason, then the usage if it was asked for. An echo with log-probabilities waits for them."""
        frame = ChunkFrame(self._head, has_null_usage=self._body.wants_usage)
        waiting = set(range(len(self._echoes))) if self._body.echo else set()
        if not self._logprobs:
            for prompt_index in sorted(waiting):
                for echo in self._echo_choices(prompt_index, ()):
                    yield frame.chunk(echo)
            waiting.clear()
        async for prompt_index, output in generation.outputs():
            if prompt_index in waiting:
                waiting.remove(prompt_index)
                for echo in self._echo_choices(prompt_index, output.prompt_logprobs):
                    yield frame.chunk(echo)
            choice = self._delta(prompt_index, output)
            if choice is not None:
                yield frame.chunk(choice, generation.usage.to_json() if self._body.wants_running_usage else None)
        if self._body.wants_usage:
            yield frame.usage_chunk(generation.usage.to_json())

    def _echo_choices(self, prompt_index: int, scored: Sequence[SampledToken]) -> Iterator[dict[str, Any]]:
        first = prompt_index * self._body.num_choices
        for index in range(first, first + self._body.num_choices):
            lists = self._prompt_lists(prompt_index, index, scored)
            yield {"index": index, "text": self._echoes[prompt_index], "logprobs": lists, "finish_reason": None}

    def _delta(self, prompt_index: int, output: GenerateOutput) -> dict[str, Any] | None:
        """The chunk of an output; None if it says nothing."""
        has_logprobs = bool(self._logprobs and output.tokens)
        if not output.text and not has_logprobs and output.finish_reason is None:
            return None
        index = prompt_index * self._body.num_choices + output.index
        choice: dict[str, Any] = {
            "index": index,
            "text": output.text,
            "logprobs": self._logprobs[index].take(output.tokens) if has_logprobs else None,
            "finish_reason": output.finish_reason,
        }
        if output.finish_reason is not None:
            choice["stop_reason"] = stop_reason(output, self._mask)
        return choice


def _joined(before: dict[str, Any] | None, after: dict[str, Any]) -> dict[str, Any]:
    """Parallel lists, one behind the other."""
    if before is None:
        return after
    return {name: None if values is None else before[name] + values for name, values in after.items()}
