# SPDX-License-Identifier: Apache-2.0
"""POST /v1/completions: text or token ids in, one or many prompts, choices numbered prompt by prompt."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from ziggurat.engine.types import GenerateOutput
from ziggurat.scheduling.protocol import SampledToken
from ziggurat.server.body import parse_body
from ziggurat.server.errors import UnsupportedField
from ziggurat.server.fields import COMPLETION_UNSUPPORTED
from ziggurat.server.generation import Generation
from ziggurat.server.logprobs import CompletionLogprobs
from ziggurat.server.schemas import CompletionRequest
from ziggurat.server.service import Service
from ziggurat.server.serving import Reply, Rooms, answer, check_model, new_id, off_loop
from ziggurat.server.sse import ChunkFrame


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
            refuse_echo_with_logprobs(body)
            size = sum(len(prompt) for prompt in body.prompt)
            prompts, echoes = await off_loop(lambda: encode_prompts(service, body), size)

        def make_reply(request_id: str, created_unix_s: int) -> Reply:
            head = {"id": request_id, "object": "text_completion", "created": created_unix_s, "model": model}
            writer = CompletionWriter(service, body, head, echoes)
            return Reply(collect=writer.collect, stream=writer.stream)

        return await answer(rooms, request, body, new_id("cmpl", body), prompts, make_reply)

    return router


def refuse_echo_with_logprobs(body: CompletionRequest) -> None:
    """Both together would need log probabilities of the prompt."""
    if body.echo and body.logprobs is not None:
        raise UnsupportedField(
            "echo together with logprobs (log probabilities of the prompt) is not built; leave one of them out",
            feature="prompt_logprobs",
            param="echo",
        )


def encode_prompts(service: Service, body: CompletionRequest) -> tuple[list[list[int]], list[str]]:
    """Token ids of every prompt, and the text that ``echo`` puts before its answers."""
    prompts = [service.encode(prompt) if isinstance(prompt, str) else prompt for prompt in body.prompt]
    if not body.echo:
        return prompts, [""] * len(prompts)
    return prompts, [prompt if isinstance(prompt, str) else service.decode(prompt) for prompt in body.prompt]


class CompletionWriter:
    """Turns a generation into OpenAI's text completion objects.

    Args:
        echoes: per prompt, the text that comes before its answers.
    """

    def __init__(self, service: Service, body: CompletionRequest, head: dict[str, Any], echoes: Sequence[str]) -> None:
        self._body = body
        self._head = head
        self._echoes = echoes
        self._logprobs: dict[int, CompletionLogprobs] = {}
        if body.logprobs is not None:
            num_choices = len(echoes) * body.num_choices
            self._logprobs = {index: CompletionLogprobs(service, body.logprobs) for index in range(num_choices)}

    async def collect(self, generation: Generation) -> dict[str, Any]:
        """The ``text_completion`` object, once every choice has ended."""
        texts: dict[int, list[str]] = {}
        tokens: dict[int, list[SampledToken]] = {}
        ends: dict[int, GenerateOutput] = {}
        async for prompt_index, output in generation.outputs():
            index = self._index(prompt_index, output)
            texts.setdefault(index, [self._echoes[prompt_index]]).append(output.text)
            tokens.setdefault(index, []).extend(output.tokens)
            if output.finish_reason is not None:
                ends[index] = output
        choices = [
            {
                "index": index,
                "text": "".join(texts[index]),
                "logprobs": self._logprobs[index].take(tokens[index]) if self._logprobs else None,
                "finish_reason": ends[index].finish_reason,
                "stop_reason": ends[index].stop_reason,
            }
            for index in sorted(texts)
        ]
        return {**self._head, "choices": choices, "usage": generation.usage.to_json()}

    async def stream(self, generation: Generation) -> AsyncIterator[bytes]:
        """Echo, text, finish reason, then the usage if it was asked for."""
        frame = ChunkFrame(self._head, has_null_usage=self._body.wants_usage)
        for prompt_index, echo in enumerate(self._echoes if self._body.echo else ()):
            for number in range(self._body.num_choices):
                index = prompt_index * self._body.num_choices + number
                yield frame.chunk({"index": index, "text": echo, "logprobs": None, "finish_reason": None})
        async for prompt_index, output in generation.outputs():
            has_logprobs = bool(self._logprobs and output.tokens)
            if not output.text and not has_logprobs and output.finish_reason is None:
                continue
            index = self._index(prompt_index, output)
            choice: dict[str, Any] = {
                "index": index,
                "text": output.text,
                "logprobs": self._logprobs[index].take(output.tokens) if has_logprobs else None,
                "finish_reason": output.finish_reason,
            }
            if output.finish_reason is not None:
                choice["stop_reason"] = output.stop_reason
            yield frame.chunk(choice, generation.usage.to_json() if self._body.wants_running_usage else None)
        if self._body.wants_usage:
            yield frame.usage_chunk(generation.usage.to_json())

    def _index(self, prompt_index: int, output: GenerateOutput) -> int:
        return prompt_index * self._body.num_choices + output.index
