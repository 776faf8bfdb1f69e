# SPDX-License-Identifier: Apache-2.0
"""The app: our routes, the routers that the command line adds, request ids, and one place where every failure becomes its body."""

from __future__ import annotations

import re
import time
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
from ziggurat.server import budget, chat, completions, embeddings, info, lora, sessions, tokens
from ziggurat.server.auth import Guard, load_keys
from ziggurat.server.bodies import Bodies
from ziggurat.server.config import ServerConfig
from ziggurat.server.console import REQUEST_ID, log_event
from ziggurat.server.errors import error_response, make_error
from ziggurat.server.metrics import ServerMetrics
from ziggurat.server.openapi import with_bodies
from ziggurat.server.recalled import Recaller
from ziggurat.server.service import Service
from ziggurat.server.serving import Rooms
from ziggurat.server.state import ServerState

MAX_PATH = 200
_SAFE_ID = re.compile(r"^[\x21-\x7e]{1,128}$")


def create_app(
    service: Service | ServerState,
    config: ServerConfig | None = None,
    *,
    routers: Sequence[APIRouter] = (),
    recaller: Recaller | None = None,
) -> FastAPI:
    """An ASGI app.

    Args:
        service: a loaded service, or the state of a server whose service comes later.
        routers: further routes; their `ZigguratError`s become the same bodies.
        recaller: where ``memory`` of a chat comes from.

    ``app.state.rooms`` has what the routes share.

    Raises:
        ConfigError: the file of the API keys cannot be read, or a key is malformed.
    """
    config = config or ServerConfig()
    state = service if isinstance(service, ServerState) else ServerState(service)
    metrics = ServerMetrics(state, is_doubled=config.metrics_compat == "vllm")
    rooms = Rooms(state=state, metrics=metrics, bodies=Bodies(config), recaller=recaller)
    # No docs pages: they would load scripts from elsewhere. /openapi.json is there.
    app = FastAPI(title="Ziggurat", version=ziggurat.__version__, docs_url=None, redoc_url=None)
    app.state.rooms = rooms
    app.router.redirect_slashes = False
    for room in (info, chat, completions, embeddings, tokens, budget, lora):
        app.include_router(room.make_router(rooms))
    app.include_router(sessions.make_router(rooms, config.session_folder))
    for router in routers:
        app.include_router(router)
    app.openapi = with_bodies(app.openapi)  # type: ignore[method-assign]
    app.add_exception_handler(ZigguratError, _on_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    # The last one is the outermost: what the guard refuses gets its body and its id from the edge.
    app.add_middleware(Guard, keys=load_keys(config))
    app.add_middleware(Edge, log_requests=config.log_requests)
    return app


class Edge:
    """The outermost layer: every answer carries ``X-Request-Id``, and an error that nobody expected becomes a 500 with our body.

    Args:
        log_requests: a line per request: method, path, status and times, nothing of what was said.
    """

    def __init__(self, app: ASGIApp, *, log_requests: bool = False) -> None:
        self._app = app
        self._log_requests = log_requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
        began_s, status = time.monotonic(), 0

        async def send_with_id(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id)]
            await send(message)

        token = REQUEST_ID.set(request_id.decode())
        try:
            await self._app(scope, receive, send_with_id)
        except ClientDisconnect:
            return  # it left while sending its body: nobody is there to answer
        except Exception as error:
            if status:
                raise
            await _response(error)(scope, receive, send_with_id)
        finally:
            if self._log_requests:
                _log_request(scope, status, time.monotonic() - began_s)
            REQUEST_ID.reset(token)


def _log_request(scope: Scope, status: int, took_s: float) -> None:
    """Without the query, which may hold secrets. Status 0: the client left before there was an answer."""
    # A path may hold any character once its escapes are resolved; a line break would forge a line.
    path = ascii(scope["path"][:MAX_PATH])[1:-1]
    client = scope.get("client")
    fields = {
        "method": scope["method"],
        "path": path,
        "status": status,
        "duration_s": round(took_s, 6),
        "client": f"{client[0]}:{client[1]}" if client else None,
    }
    log_event("request", f"{scope['method']} {path} {status} in {took_s:.3f} s", fields)


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
