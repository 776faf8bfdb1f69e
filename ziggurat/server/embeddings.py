# SPDX-License-Identifier: Apache-2.0
"""POST /v1/embeddings: texts or token ids to vectors, fed to the engine as its queue empties."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Literal

import msgspec
import numpy as np
from fastapi import APIRouter
from pydantic import Field, field_validator
from starlette.requests import Request
from starlette.responses import Response

from ziggurat.engine.types import EmbedRequest, GenerateOutput
from ziggurat.errors import ContextLengthExceeded, Draining, EngineError, QueueFull
from ziggurat.scheduling.protocol import Pooling
from ziggurat.server.auth import client_of
from ziggurat.server.body import parse_body
from ziggurat.server.generation import ClientGone, until_disconnect
from ziggurat.server.metrics import RequestTimer
from ziggurat.server.schemas import MAX_ID_LENGTH, Prompts, check_prompts, list_prompts
from ziggurat.server.service import ModelText, Service
from ziggurat.server.serving import CLIENT_CLOSED_REQUEST, Rooms, adapter_of, check_model, new_id, off_loop
from ziggurat.server.turns import Strict

# OpenAI's bound of one request.
MAX_INPUTS = 2048
# Texts of one request in the engine at a time; more would crowd out other clients and gain nothing.
MAX_OPEN = 8
UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "dimensions": (),
    "truncate_prompt_tokens": (),
    "embed_dtype": ("float32",),
    "endianness": ("native", "little"),
    "messages": (),
}


class EmbeddingRequest(Strict):
    """Body of POST /v1/embeddings. ``input``: a text, token ids, or a list of either; always a list after parsing."""

    input: Prompts
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    pooling: Pooling | None = None
    normalize: bool | None = None
    add_special_tokens: bool | None = None
    priority: int | None = None
    cache_salt: str | None = Field(None, min_length=1)
    request_id: str | None = Field(None, pattern=r"^[A-Za-z0-9._:/-]+$", max_length=MAX_ID_LENGTH)
    user: str | None = None

    @field_validator("input", mode="before")
    @classmethod
    def _many(cls, value: object) -> object:
        return list_prompts(value)

    @field_validator("input")
    @classmethod
    def _check(cls, value: list[str | list[int]]) -> list[str | list[int]]:
        if len(value) > MAX_INPUTS:
            raise ValueError(f"takes at most {MAX_INPUTS} texts, got {len(value)}; send the rest in another request")
        return check_prompts(value)


def make_router(rooms: Rooms) -> APIRouter:
    """The route of embeddings."""
    router = APIRouter()

    @router.post("/v1/embeddings", summary="Embeddings, OpenAI-compatible")
    async def embeddings(request: Request) -> Response:
        service = rooms.state.ready_service()
        with rooms.bodies.hold() as held:
            body = await parse_body(request, held, EmbeddingRequest, UNSUPPORTED, max_model_len=service.max_model_len)
            model = check_model(service, body.model)
            size = sum(len(text) for text in body.input)
            prompts = await off_loop(lambda: encode_inputs(service, body), size)
        final_id = rooms.state.take_id(new_id("embd", body.request_id))
        timer = RequestTimer(rooms.metrics, num_choices=len(prompts))
        who = client_of(request, body.user), adapter_of(service, model)
        run = _Run(service, body, final_id, prompts, timer, who)
        try:
            vectors = await until_disconnect(request.receive, run.vectors())
        except ContextLengthExceeded as error:
            error.param = "input"  # the engine does not know by which field it came
            raise
        except ClientGone:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        finally:
            rooms.state.drop_id(final_id)
        is_base64 = body.encoding_format == "base64"
        data = [
            {"object": "embedding", "index": index, "embedding": _base64(vector) if is_base64 else vector}
            for index, vector in enumerate(vectors)
        ]
        num_tokens = sum(len(prompt) for prompt in prompts)
        usage = {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
        answer = {"object": "list", "data": data, "model": model, "usage": usage}
        return Response(msgspec.json.encode(answer), media_type="application/json")

    return router


def encode_inputs(service: ModelText, body: EmbeddingRequest) -> list[list[int]]:
    """Token ids of every text. Errors name the field as this route has it."""
    has_special = body.add_special_tokens is not False
    try:
        return [
            service.encode(text, add_special_tokens=has_special) if isinstance(text, str) else text
            for text in body.input
        ]
    except ContextLengthExceeded as error:
        error.param = "input"
        raise


def _base64(vector: Sequence[float]) -> str:
    """Little-endian fp32, which is what OpenAI's client decodes."""
    return base64.b64encode(np.asarray(vector, "<f4").tobytes()).decode()


class _Run:
    """The texts of one request on their way through the engine, a few at a time."""

    def __init__(
        self,
        service: Service,
        body: EmbeddingRequest,
        request_id: str,
        prompts: Sequence[Sequence[int]],
        timer: RequestTimer,
        who: tuple[str, str],
    ) -> None:
        self._service = service
        self._body = body
        self._id = request_id
        self._prompts = prompts
        self._timer = timer
        self._client, self._adapter = who
        self._open: dict[int, AsyncIterator[GenerateOutput]] = {}

    async def vectors(self) -> list[Sequence[float]]:
        """One vector per text, in order. Whatever happens, nothing stays in the engine.

        Raises:
            QueueFull: the queue is full of other requests.
            RequestError, EngineError, Draining: as the engine says.
        """
        found: list[Sequence[float]] = []
        next_index = 0
        try:
            while len(found) < len(self._prompts):
                while next_index < len(self._prompts) and len(self._open) < MAX_OPEN:
                    try:
                        self._open[next_index] = await self._service.start(self._request(next_index))
                    except QueueFull:
                        if not self._open:
                            raise
                        break  # others fill the queue: go on when one of ours has ended
                    next_index += 1
                self._timer.on_admitted()
                found.append(await self._take(len(found)))
            return found
        finally:
            for stream in self._open.values():
                await _close(stream)
            self._timer.on_close()

    def _request(self, index: int) -> EmbedRequest:
        body = self._body
        return EmbedRequest(
            request_id=f"{self._id}/{index}",
            prompt_ids=self._prompts[index],
            pooling=body.pooling or "mean",
            normalize=body.normalize is not False,
            priority=body.priority or 0,
            cache_salt=body.cache_salt or "",
            client=self._client,
            adapter=self._adapter,
        )

    async def _take(self, index: int) -> Sequence[float]:
        found: Sequence[float] | None = None
        async for output in self._open[index]:
            self._timer.on_output(index, output)
            if output.finish_reason == "abort":
                raise Draining("the request was ended because the server is shutting down")
            if output.embedding is None:
                raise EngineError(output.error or "the engine failed while embedding this text")
            found = output.embedding
        if found is None:
            raise EngineError("the engine ended this text without an embedding")
        del self._open[index]
        return found


async def _close(stream: AsyncIterator[GenerateOutput]) -> None:
    aclose = getattr(stream, "aclose", None)
    if aclose is not None:
        await aclose()
