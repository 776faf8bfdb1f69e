# SPDX-License-Identifier: Apache-2.0
"""Sessions over HTTP: what a client's conversations hold, save and restore, end.

A client sees and ends its own sessions only; who it is says its key, or ``?user=`` on a server without keys.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from ziggurat.engine.session_file import SUFFIX
from ziggurat.errors import RequestError
from ziggurat.server.auth import client_of
from ziggurat.server.errors import UnsupportedField
from ziggurat.server.schemas import SESSION_ID
from ziggurat.server.serving import Rooms, adapter_of, check_model, json_response

_CLIENT_DIGITS = 16


def make_router(rooms: Rooms, folder: Path | None) -> APIRouter:
    """The routes of sessions. ``folder``: where they are saved; None refuses to."""
    router = APIRouter()

    @router.get("/v1/sessions", summary="Sessions of this client")
    async def sessions(request: Request) -> Response:
        client = _client(request)
        rows = (await rooms.state.ready_service().memory()).get("sessions_kept", [])
        data = [{key: row[key] for key in row if key != "client"} for row in rows if row["client"] == client]
        return json_response({"object": "list", "data": data})

    @router.delete("/v1/sessions/{session_id}", summary="Forget a session; what is saved stays")
    async def forget(request: Request, session_id: str) -> Response:
        await rooms.state.ready_service().forget_session(_client(request), _checked(session_id))
        return json_response({"session_id": session_id, "deleted": True})

    @router.post("/v1/sessions/{session_id}/save", summary="Save what is cached of a session")
    async def save(request: Request, session_id: str) -> Response:
        client = _client(request)
        path = _path(folder, client, _checked(session_id))
        found = await rooms.state.ready_service().save_session(client, session_id, path)
        return json_response({"session_id": session_id, **found})

    @router.post(
        "/v1/sessions/{session_id}/restore", summary="Put a saved session into the prefix cache; ?model= for an adapter"
    )
    async def restore(request: Request, session_id: str) -> Response:
        service, client = rooms.state.ready_service(), _client(request)
        path = _path(folder, client, _checked(session_id))
        adapter = adapter_of(service, check_model(service, request.query_params.get("model")))
        found = await service.restore_session(client, session_id, adapter, path)
        return json_response({"session_id": session_id, **found})

    return router


def _client(request: Request) -> str:
    return client_of(request, request.query_params.get("user"))


def _checked(session_id: str) -> str:
    """An id that requests could have sent, and that names a file."""
    if not re.fullmatch(SESSION_ID, session_id):
        raise RequestError(
            f"session_id {session_id[:100]!r} must be letters, digits, '.', '_' and '-', with a letter or digit first",
            param="session_id",
        )
    return session_id


def _path(folder: Path | None, client: str, session_id: str) -> Path:
    if folder is None:
        raise UnsupportedField(
            "this server saves no sessions: start it with --session-folder FOLDER",
            feature="session-folder",
            param="session_id",
        )
    return folder.expanduser() / hashlib.sha256(client.encode()).hexdigest()[:_CLIENT_DIGITS] / f"{session_id}{SUFFIX}"
