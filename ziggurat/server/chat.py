# SPDX-License-Identifier: Apache-2.0
"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from ziggurat.engine.types import GenerateOutput
from ziggurat.scheduling.protocol import SampledToken
from ziggurat.server.body import parse_body
from ziggurat.server.conversation import Conversation, converse, make_reader, shows_special, template_options
from ziggurat.server.fields import CHAT_UNSUPPORTED
from ziggurat.server.generation import Generation, Outputs, stop_reason
from ziggurat.server.logprobs import chat_logprobs, prompt_logprobs
from ziggurat.server.params import sampling_params
from ziggurat.server.recalled import recalled_turns
from ziggurat.server.schemas import ChatRequest
from ziggurat.server.service import ModelText
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
            options = template_options(body, service.family)
            messages = [message.for_template() for message in body.messages]
            messages = await recalled_turns(rooms.recaller, body.memory, messages)
            size = sum(len(message["content"] or "") for message in messages)
            prompt_ids = await off_loop(lambda: body.kept(service.encode_chat(messages, options)), size)
        conversation = await converse(service, body, prompt_ids)
        has_special = shows_special(body, service.family)
        params = sampling_params(body, service.default_sampling, conversation.mask, shows_special=has_special)

        def make_reply(request_id: str, created_unix_s: int) -> Reply:
            head = {"id": request_id, "created": created_unix_s, "model": model}
            writer = ChatWriter(service, body, head, conversation)
            return Reply(collect=writer.collect, stream=writer.stream)

        return await answer(rooms, request, body, new_id("chatcmpl", body.request_id), [prompt_ids], params, make_reply)

    return router


class ChatWriter:
    """Turns a generation into OpenAI's chat objects.

    Args:
        head: ``id``, ``created`` and ``model`` of the answer.
        call_ids: see `make_reader`; each choice gets its own.
    """

    def __init__(
        self,
        service: ModelText,
        body: ChatRequest,
        head: dict[str, Any],
        conversation: Conversation,
        call_ids: str | None = None,
    ) -> None:
        self._service = service
        self._body = body
        self._head = head
        self._mask = conversation.mask
        self._num_top = body.num_logprobs
        self._readers = [
            make_reader(body, conversation, call_ids and f"{call_ids}/{index}") for index in range(body.num_choices)
        ]

    async def collect(self, generation: Outputs) -> dict[str, Any]:
        """The ``chat.completion`` object, once every choice has ended."""
        tokens: dict[int, list[SampledToken]] = {}
        ends: dict[int, GenerateOutput] = {}
        scored: list[SampledToken] = []
        async for _, output in generation.outputs():
            self._readers[output.index].feed(output.text)
            tokens.setdefault(output.index, []).extend(output.tokens)
            scored += output.prompt_logprobs
            if output.finish_reason is not None:
                self._readers[output.index].finish()
                ends[output.index] = output
        choices = [
            {
                "index": index,
                "message": self._readers[index].message(),
                "logprobs": self._logprobs(tokens[index]),
                **self._end(ends[index]),
            }
            for index in sorted(ends)
        ]
        answer = {**self._named("chat.completion"), "choices": choices, "usage": generation.usage.to_json()}
        if self._body.prompt_logprobs is not None:
            answer["prompt_logprobs"] = prompt_logprobs(self._service, scored, self._body.prompt_logprobs)
        return answer

    async def stream(self, generation: Generation) -> AsyncIterator[bytes]:
        """Role, thoughts, text and calls, finish reason, then the usage if it was asked for."""
        frame = ChunkFrame(self._named("chat.completion.chunk"), has_null_usage=self._body.wants_usage)
        for index in range(self._body.num_choices):
            yield frame.chunk(
                {"index": index, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
            )
        async for _, output in generation.outputs():
            usage = generation.usage.to_json() if self._body.wants_running_usage else None
            for choice in self._deltas(output):
                yield frame.chunk(choice, usage)
        if self._body.wants_usage:
            yield frame.usage_chunk(generation.usage.to_json())

    def _deltas(self, output: GenerateOutput) -> list[dict[str, Any]]:
        """The chunks of an output: none if it says nothing. Log-probabilities go with the first, the end with the last."""
        reader, has_ended = self._readers[output.index], output.finish_reason is not None
        deltas = reader.feed(output.text) + (reader.finish() if has_ended else [])
        has_logprobs = self._num_top is not None and bool(output.tokens)
        if not deltas and (has_logprobs or has_ended):
            deltas = [{"content": ""} if has_logprobs else {}]
        choices: list[dict[str, Any]] = [
            {"index": output.index, "delta": delta, "logprobs": None, "finish_reason": None} for delta in deltas
        ]
        if has_logprobs:
            choices[0]["logprobs"] = self._logprobs(output.tokens)
        if has_ended:
            choices[-1] |= self._end(output)
        return choices

    def _end(self, output: GenerateOutput) -> dict[str, Any]:
        has_calls = output.finish_reason == "stop" and self._readers[output.index].has_calls
        return {
            "finish_reason": "tool_calls" if has_calls else output.finish_reason,
            "stop_reason": stop_reason(output, self._mask),
        }

    def _named(self, kind: str) -> dict[str, Any]:
        return {"id": self._head["id"], "object": kind, "created": self._head["created"], "model": self._head["model"]}

    def _logprobs(self, tokens: Sequence[SampledToken]) -> dict[str, Any] | None:
        return None if self._num_top is None else chat_logprobs(self._service, tokens, self._num_top)
