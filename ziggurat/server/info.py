# SPDX-License-Identifier: Apache-2.0
"""The routes that tell: models, health, readiness, version, metrics, the memory map, and the page."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

import ziggurat
from ziggurat.server.memory_view import kv_bytes
from ziggurat.server.service import Service, ServiceStats
from ziggurat.server.serving import Rooms, check_model, json_response

STATIC = Path(__file__).parent / "static"
MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
# The page loads nothing from elsewhere and nobody may frame it.
PAGE_POLICY = "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"


def make_router(rooms: Rooms) -> APIRouter:
    """All routes that need no body."""
    router = APIRouter()
    _add_models(router, rooms)
    _add_health(router, rooms)
    _add_state(router, rooms)
    _add_page(router)
    return router


def _add_models(router: APIRouter, rooms: Rooms) -> None:
    @router.get("/v1/models", summary="Served models")
    async def models() -> Response:
        service = rooms.state.ready_service()
        cards = [_card(rooms, service, name) for name in service.model_names]
        return json_response({"object": "list", "data": cards})

    @router.get("/v1/models/{name:path}", summary="One served model")
    async def model(name: str) -> Response:
        service = rooms.state.ready_service()
        return json_response(_card(rooms, service, check_model(service, name)))


def _add_health(router: APIRouter, rooms: Rooms) -> None:
    @router.head("/health", include_in_schema=False)
    @router.get("/health", summary="Alive, whether or not the model is loaded")
    async def health() -> Response:
        return json_response({"status": "ok", "phase": rooms.state.phase})

    @router.head("/ready", include_in_schema=False)
    @router.get("/ready", summary="200 when requests are taken; 503 while loading or draining")
    async def ready() -> Response:
        rooms.state.ready_service()
        return json_response({"status": "ready"})

    @router.get("/version", summary="Version of Ziggurat")
    async def version() -> Response:
        return json_response({"version": ziggurat.__version__})


def _add_state(router: APIRouter, rooms: Rooms) -> None:
    @router.get("/metrics", summary="Prometheus metrics")
    async def metrics() -> Response:
        return Response(await rooms.metrics.render(), media_type=CONTENT_TYPE_LATEST)

    @router.get("/memory", summary="Who owns which bytes, why, since when")
    async def memory() -> Response:
        state = rooms.state
        # Draining servers still tell; loading and failed ones say so.
        service = state.service if state.phase == "draining" and state.service else state.ready_service()
        memory, stats = await service.memory(), await service.stats()
        about = {
            "model": service.model_names[0],
            "max_model_len": service.max_model_len,
            "phase": state.phase,
            "uptime_s": round(time.monotonic() - state.started_s, 3),
            "requests": _request_counts(rooms, stats),
            "kv_bytes": kv_bytes(memory),
        }
        return json_response(memory | about)


def _request_counts(rooms: Rooms, stats: ServiceStats) -> dict[str, Any]:
    metrics = rooms.metrics
    return {
        "num_running": stats.num_running,
        "num_waiting": stats.num_waiting,
        "num_open": rooms.state.num_live,
        "prompt_tokens": metrics.num_prompt_tokens,
        "generation_tokens": metrics.num_generation_tokens,
        "prefix_query_tokens": metrics.num_prefix_queries,
        "prefix_hit_tokens": metrics.num_prefix_hits,
    }


def _add_page(router: APIRouter) -> None:
    files = {path.name: path.read_bytes() for path in sorted(STATIC.iterdir()) if path.suffix in MEDIA_TYPES}

    def add(route: str, name: str) -> None:
        headers = {"cache-control": "no-cache", "x-content-type-options": "nosniff"}
        if name.endswith(".html"):
            headers["content-security-policy"] = PAGE_POLICY
        response = Response(files[name], media_type=MEDIA_TYPES[Path(name).suffix], headers=headers)

        @router.head(route, include_in_schema=False)
        @router.get(route, include_in_schema=False)
        async def page() -> Response:
            return response

    add("/", "index.html")
    for name in files:
        add(f"/static/{name}", name)


def _card(rooms: Rooms, service: Service, name: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": rooms.state.created_unix_s,
        "owned_by": "ziggurat",
        "max_model_len": service.max_model_len,
        **({"parent": service.model_names[0]} if name != service.model_names[0] else {}),
    }
