# SPDX-License-Identifier: Apache-2.0
"""PUT /memory: another budget while the server runs."""

from __future__ import annotations

from dataclasses import asdict

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from ziggurat.errors import ConfigError, RequestError
from ziggurat.server.body import parse_body
from ziggurat.server.serving import Rooms, json_response
from ziggurat.server.tokens import NOTHING_UNSUPPORTED
from ziggurat.server.turns import Strict
from ziggurat.units import parse_size


class BudgetRequest(Strict):
    """Body of PUT /memory: ``budget`` as ``--memory`` is written, ``600MiB`` or a number of bytes."""

    budget: str | int


def make_router(rooms: Rooms) -> APIRouter:
    """The route that changes the budget."""
    router = APIRouter()

    @router.put("/memory", summary="Change the memory budget; open requests go on")
    async def set_memory(request: Request) -> Response:
        service = rooms.state.ready_service()
        with rooms.bodies.hold() as held:
            limit = service.max_model_len
            body = await parse_body(request, held, BudgetRequest, NOTHING_UNSUPPORTED, max_model_len=limit)
        try:
            num_bytes = parse_size(body.budget)
        except ConfigError as error:
            raise RequestError(f"budget: {error}", param="budget") from None
        change = await service.set_memory(num_bytes)
        return json_response(asdict(change))

    return router
