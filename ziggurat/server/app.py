# SPDX-License-Identifier: Apache-2.0
"""The app: our routes, the routers that the command line adds, request ids, and one place where every failure becomes its body."""

from __future__ import annotations

import re
import uuid
from collections.abc import MutableMapping, Sequence
from typing import Any

import msgspec
from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

import ziggurat
from ziggurat.errors import RequestError, ZigguratError
from ziggurat.registry import nearest
from ziggurat.server import chat, completions, embeddings, info, tokens
from ziggurat.server.bodies import Bodies
from ziggurat.server.config import ServerConfig
from ziggurat.server.errors import error_response, make_error
from ziggurat.server.metrics import ServerMetrics
from ziggurat.server.openapi import with_bodies
from ziggurat.server.service import Service
from ziggurat.server.serving import Rooms
from ziggurat.server.state import ServerState

MAX_PATH = 200
_SAFE_ID = re.compile(r"^[\x21-\x7e]{1,128}$")


def create_app(
    service: Service | ServerState, config: ServerConfig | None = None, *, routers: Sequence[APIRouter] = ()
) -> FastAPI:
    """An ASGI app.

    Args:
        service: a loaded service, or the state of a server whose service comes later.
        routers: further routes; their `ZigguratError`s become the same bodies.

    ``app.state.rooms`` has what the routes share.
    """
    state = service if isinstance(service, ServerState) else ServerState(service)
    rooms = Rooms(state=state, metrics=ServerMetrics(state), bodies=Bodies(config or ServerConfig()))
    # No docs pages: they would load scripts from elsewhere. /openapi.json is there.
    app = FastAPI(title="Ziggurat", version=ziggurat.__version__, docs_url=None, redoc_url=None)
    app.state.rooms = rooms
    app.router.redirect_slashes = False
    for room in (info, chat, completions, embeddings, tokens):
        app.include_router(room.make_router(rooms))
    for router in routers:
        app.include_router(router)
    app.openapi = with_bodies(app.openapi)  # type: ignore[method-assign]
    app.add_exception_handler(ZigguratError, _on_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_middleware(Edge)
    return app


class Edge:
    """The outermost layer: every answer carries ``X-Request-Id``, and an error that nobody expected becomes a 500 with our body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
        has_started = False

        async def send_with_id(message: MutableMapping[str, Any]) -> None:
            nonlocal has_started
            if message["type"] == "http.response.start":
                has_started = True
                message["headers"] = [*message["headers"], (b"x-request-id", request_id)]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except ClientDisconnect:
            return  # it left while sending its body: nobody is there to answer
        except Exception as error:
            if has_started:
                raise
            await _response(error)(scope, receive, send_with_id)


def _request_id(scope: Scope) -> bytes:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _SAFE_ID.match(value.decode("latin-1")):
            return bytes(value)
    return uuid.uuid4().hex.encode()


def _response(error: BaseException) -> Response:
    status, body, headers = error_response(error)
    return Response(body, status, headers, "application/json")


async def _on_error(_: Request, error: Exception) -> Response:
    return _response(error)


async def _on_validation_error(_: Request, error: Exception) -> Response:
    """Only routers of others let FastAPI validate; their complaints get our body too."""
    assert isinstance(error, RequestValidationError)
    detail = error.errors()[0]
    path = ".".join(str(part) for part in detail["loc"][1:]) or str(detail["loc"][0])
    return _response(RequestError(f"{path}: {detail['msg']}", param=path))


async def _on_http_error(request: Request, error: Exception) -> Response:
    """No such route, or not with this method."""
    assert isinstance(error, HTTPException)
    path, method = request.url.path[:MAX_PATH], request.method
    if error.status_code == 404:
        hint = nearest(path, sorted(request.app.openapi()["paths"]))
        body = make_error(f"no route {method} {path}{hint}", type="not_found_error", code="route_not_found")
    elif error.status_code == 405:
        allowed = (error.headers or {}).get("allow") or (error.headers or {}).get("Allow") or "another method"
        message = f"{path} does not take {method}; it takes {allowed}"
        body = make_error(message, type="invalid_request_error", code="method_not_allowed")
    else:
        body = make_error(str(error.detail), type="invalid_request_error", code=f"http_{error.status_code}")
    headers = dict(error.headers or {})
    return Response(msgspec.json.encode({"error": body}), error.status_code, headers, "application/json")
