# SPDX-License-Identifier: Apache-2.0
"""POST /tokenize, /detokenize (vLLM's bodies) and /reset_prefix_cache."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import FailFast, Field, model_validator
from starlette.requests import Request
from starlette.responses import Response

from ziggurat.engine.chat_template import TemplateOptions
from ziggurat.errors import RequestError
from ziggurat.server.body import parse_body
from ziggurat.server.service import Service
from ziggurat.server.serving import Rooms, check_model, json_response, off_loop
from ziggurat.server.turns import ChatMessage, Strict, TemplateKwargs, Tool

NOTHING_UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {}


class TokenizeRequest(Strict):
    """Body of POST /tokenize: a ``prompt``, or ``messages`` with what a chat request says about its template."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[ChatMessage] | None, FailFast()] = Field(None, min_length=1)
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: TemplateKwargs = None
    tools: list[Tool] | None = None
    return_token_strs: bool | None = None

    @model_validator(mode="after")
    def _one_of_two(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("prompt or messages is needed, and not both")
        if self.messages is not None and self.add_special_tokens:
            raise ValueError("add_special_tokens is for a prompt: the chat template has written them already")
        return self


class DetokenizeRequest(Strict):
    """Body of POST /detokenize."""

    tokens: Annotated[list[int], FailFast()]
    model: str | None = None


def make_router(rooms: Rooms) -> APIRouter:
    """The routes of tokens and of the prefix cache."""
    router = APIRouter()
    _add_tokenize(router, rooms)
    _add_detokenize(router, rooms)

    @router.post("/reset_prefix_cache", summary="Forget cached prefixes that no request holds")
    async def reset_prefix_cache() -> Response:
        num_blocks = await rooms.state.ready_service().reset_prefix_cache()
        return json_response({"num_dropped_blocks": num_blocks})

    return router


def _add_tokenize(router: APIRouter, rooms: Rooms) -> None:
    @router.post("/tokenize", summary="Token ids of a text or a conversation")
    async def tokenize(request: Request) -> Response:
        service = rooms.state.ready_service()
        limit = service.max_model_len
        with rooms.bodies.hold() as held:
            body = await parse_body(request, held, TokenizeRequest, NOTHING_UNSUPPORTED, max_model_len=limit)
            check_model(service, body.model)
            texts = [body.prompt or "", *((turn.content or "") for turn in body.messages or ())]
            ids = await off_loop(lambda: _encode(service, body), sum(len(text) for text in texts))
        strings = None
        if body.return_token_strs:
            strings = [service.token_bytes(token_id).decode("utf-8", "replace") for token_id in ids]
        return json_response({"count": len(ids), "max_model_len": limit, "tokens": ids, "token_strs": strings})


def _encode(service: Service, body: TokenizeRequest) -> list[int]:
    if body.messages is None:
        return service.encode(body.prompt or "", add_special_tokens=body.add_special_tokens is not False)
    options = TemplateOptions(
        add_generation_prompt=body.add_generation_prompt is not False,
        continue_final_message=bool(body.continue_final_message),
        tools=[tool.for_template() for tool in body.tools or ()],
        variables=body.chat_template_kwargs or {},
    )
    return service.encode_chat([turn.for_template() for turn in body.messages], options)


def _add_detokenize(router: APIRouter, rooms: Rooms) -> None:
    @router.post("/detokenize", summary="Text of token ids, special tokens included")
    async def detokenize(request: Request) -> Response:
        service = rooms.state.ready_service()
        limit = service.max_model_len
        with rooms.bodies.hold() as held:
            body = await parse_body(request, held, DetokenizeRequest, NOTHING_UNSUPPORTED, max_model_len=limit)
            check_model(service, body.model)
            size = service.vocab_size
            for token_id in body.tokens:
                if not 0 <= token_id < size:
                    raise RequestError(
                        f"token {token_id} is not in the vocabulary (ids 0 to {size - 1})", param="tokens"
                    )
            text = await off_loop(lambda: service.decode(body.tokens, skip_special_tokens=False), len(body.tokens))
        return json_response({"prompt": text})
