# SPDX-License-Identifier: Apache-2.0
"""POST /v1/load_lora_adapter and /v1/unload_lora_adapter, with vLLM's bodies."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from ziggurat.errors import ConfigError, ModelError, RequestError, UnsupportedFeature
from ziggurat.server.body import parse_body
from ziggurat.server.serving import Rooms, json_response
from ziggurat.server.turns import Strict

NOTHING_UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {"lora_int_id": (0,), "load_inplace": (False,)}


class LoadLoraRequest(Strict):
    """Body of POST /v1/load_lora_adapter: a folder on the server's machine, in PEFT's layout."""

    lora_name: str = Field(min_length=1, max_length=200)
    lora_path: str = Field(min_length=1, max_length=4096)


class UnloadLoraRequest(Strict):
    """Body of POST /v1/unload_lora_adapter."""

    lora_name: str = Field(min_length=1, max_length=200)


def make_router(rooms: Rooms) -> APIRouter:
    """The routes that load and unload adapters."""
    router = APIRouter()

    @router.post("/v1/load_lora_adapter", summary="Serve one more LoRA adapter")
    async def load_lora_adapter(request: Request) -> Response:
        service = rooms.state.ready_service()
        limit = service.max_model_len
        with rooms.bodies.hold() as held:
            body = await parse_body(request, held, LoadLoraRequest, NOTHING_UNSUPPORTED, max_model_len=limit)
        try:
            await service.load_lora(body.lora_name, Path(body.lora_path))
        except (ConfigError, ModelError, UnsupportedFeature) as error:
            raise RequestError(str(error), param="lora_path", code="invalid_adapter") from None
        return json_response({"message": f"adapter {body.lora_name!r} is served under this model name"})

    @router.post("/v1/unload_lora_adapter", summary="Forget a LoRA adapter")
    async def unload_lora_adapter(request: Request) -> Response:
        service = rooms.state.ready_service()
        limit = service.max_model_len
        with rooms.bodies.hold() as held:
            body = await parse_body(request, held, UnloadLoraRequest, NOTHING_UNSUPPORTED, max_model_len=limit)
        await service.unload_lora(body.lora_name)
        return json_response({"message": f"adapter {body.lora_name!r} is no longer served"})

    return router
