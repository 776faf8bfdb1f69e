# SPDX-License-Identifier: Apache-2.0
"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from ziggurat.engine.chat_template import TemplateOptions
from ziggurat.engine.types import GenerateOutput
from ziggurat.scheduling.protocol import SampledToken
from ziggurat.server.body import parse_body
from ziggurat.server.fields import CHAT_UNSUPPORTED
from ziggurat.server.generation import Generation
from ziggurat.server.logprobs import chat_logprobs, prompt_logprobs
from ziggurat.server.schemas import ChatRequest
from ziggurat.server.service import Service
from ziggurat.server.serving import Reply, Rooms, answer, check_model, new_id, off_loop
from ziggurat.server.sse import ChunkFrame


def make_router(rooms: Rooms) -> APIRouter:
    """The route of chat completions."""
    router = APIRouter()

    @router.post("/v1/chat/completions", summary="Chat completion, OpenAI-compatible")
    async def chat_completions(request: Request) -> Response:
        service = rooms.state.ready_service()
        with rooms.bodies.hold() as held:
            body = await parse_body(request, held, ChatRequest, CHAT_UNSUPPORTED, max_model_len=service.max_model_len)
            model = check_model(service, body.model)
            messages = [message.for_template() for message in body.messages]
            size = sum(len(message["content"]) for message in messages)
            prompt_ids = await off_loop(lambda: service.encode_chat(messages, TemplateOptions()), size)

        def make_reply(request_id: str, created_unix_s: int) -> Reply:
            writer = ChatWriter(service, body, {"id": request_id, "created": created_unix_s, "model": model})
            return Reply(collect=writer.collect, stream=writer.stream)

        return await answer(rooms, request, body, new_id("chatcmpl", body.request_id), [prompt_ids], make_reply)

    return router


class ChatWriter:
    """Turns a generation into OpenAI's chat objects.

    Args:
        head: ``id``, ``created`` and ``model`` of the answer.
    """

    def __init__(self, service: Service, body: ChatRequest, head: dict[str, Any]) -> None:
        self._service = service
        self._body = body
        self._head = head
        self._num_top = body.num_logprobs

    async def collect(self, generation: Generation) -> dict[str, Any]:
        """The ``chat.completion`` object, once every choice has ended."""
        texts: dict[int, list[str]] = {}
        tokens: dict[int, list[SampledToken]] = {}
        ends: dict[int, GenerateOutput] = {}
        scored: list[SampledToken] = []
        async for _, output in generation.outputs():
            texts.setdefault(output.index, []).append(output.text)
            tokens.setdefault(output.index, []).extend(output.tokens)
            scored += output.prompt_logprobs
            if output.finish_reason is not None:
                ends[output.index] = output
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": "".join(texts[index]), "refusal": None},
                "logprobs": self._logprobs(tokens[index]),
                "finish_reason": ends[index].finish_reason,
                "stop_reason": ends[index].stop_reason,
            }
            for index in sorted(texts)
        ]
        answer = {**self._named("chat.completion"), "choices": choices, "usage": generation.usage.to_json()}
        if self._body.prompt_logprobs is not None:
            answer["prompt_logprobs"] = prompt_logprobs(self._service, scored, self._body.prompt_logprobs)
        return answer

    async def stream(self, generation: Generation) -> AsyncIterator[bytes]:
        """Role, text, finish reason, then the usage if it was asked for."""
        frame = ChunkFrame(self._named("chat.completion.chunk"), has_null_usage=self._body.wants_usage)
        for index in range(self._body.num_choices):
            yield frame.chunk(
                {"index": index, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
            )
        async for _, output in generation.outputs():
            has_logprobs = self._num_top is not None and bool(output.tokens)
            if not output.text and not has_logprobs and output.finish_reason is None:
                continue
            choice = {
                "index": output.index,
                "delta": {"content": output.text} if output.text or has_logprobs else {},
                "logprobs": self._logprobs(output.tokens) if has_logprobs else None,
                "finish_reason": output.finish_reason,
            }
            if output.finish_reason is not None:
                choice["stop_reason"] = output.stop_reason
            yield frame.chunk(choice, generation.usage.to_json() if self._body.wants_running_usage else None)
        if self._body.wants_usage:
            yield frame.usage_chunk(generation.usage.to_json())

    def _named(self, kind: str) -> dict[str, Any]:
        return {"id": self._head["id"], "object": kind, "created": self._head["created"], "model": self._head["model"]}

    def _logprobs(self, tokens: list[SampledToken] | tuple[SampledToken, ...]) -> dict[str, Any] | None:
        return None if self._num_top is None else chat_logprobs(self._service, tokens, self._num_top)
