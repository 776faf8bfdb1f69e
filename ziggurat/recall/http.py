# SPDX-License-Identifier: Apache-2.0
"""Memories over HTTP: routes that ``ziggurat serve --recall FOLDER`` adds below ``/v1/memories``, and so behind its API keys.

Every request names its ``user``; stores of different users are different files. Whoever has an API key may name any user, as with OpenAI's
``user`` field: a service in front maps its people to names.
"""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from ziggurat.errors import RequestError
from ziggurat.recall.cube import Filter, Hit, Kind, NewMemory
from ziggurat.recall.encoder import Encoder
from ziggurat.recall.owners import open_store
from ziggurat.recall.store import MemStore
from ziggurat.server.body import decode_body
from ziggurat.server.errors import BodyTooLarge
from ziggurat.server.recalled import MemoryField

T = TypeVar("T")
MAX_BODY_BYTES = 4 << 20
MAX_OPEN = 32
MAX_ADDED = 256
_ENCODED_AT_ONCE = 64
# The end of a long turn is what it asks.
MAX_QUERY_CHARACTERS = 2000


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class MemoryIn(_Strict):
    """One memory to keep; the fields of `NewMemory`."""

    text: str
    kind: Kind = "fact"
    agent: str = ""
    session: str = ""
    speaker: str = ""
    sources: list[str] = []
    valid_from_s: float | None = None
    valid_until_s: float | None = None
    expires_s: float | None = None
    said_s: float | None = None
    confidence: float = 1.0
    tags: list[str] = []


class AddRequest(_Strict):
    """Body of POST /v1/memories."""

    user: str
    memories: list[MemoryIn] = Field(min_length=1, max_length=MAX_ADDED)


class SearchRequest(_Strict):
    """Body of POST /v1/memories/search."""

    user: str
    query: str
    k: int = 10
    kind: Kind | None = None
    agent: str | None = None
    session: str | None = None
    since_s: float | None = None
    until_s: float | None = None
    as_of_s: float | None = None


class UpdateRequest(_Strict):
    """Body of POST /v1/memories/{id}."""

    user: str
    text: str
    expected_version: int | None = None
    reason: str = "feedback"


class Stores:
    """Open stores of many users, the least recently used ones closed again. Thread-safe: one call at a time.

    Args:
        folder: of all users.
    """

    def __init__(self, folder: Path, encoder: Encoder | None = None) -> None:
        self._folder, self._encoder = folder, encoder
        self._lock = threading.Lock()
        self._open: OrderedDict[str, MemStore] = OrderedDict()

    def call(self, user: str, work: Callable[[MemStore], T]) -> T:
        """The result of some work on a user's store.

        Raises:
            RequestError: the work refused, or nobody is named. ConfigError: the store cannot be opened.
        """
        with self._lock:
            store = self._open.get(user)
            if store is None:
                store = self._open[user] = open_store(self._folder, user, self._encoder)
            self._open.move_to_end(user)
            while len(self._open) > MAX_OPEN:
                self._open.popitem(last=False)[1].close()
            return work(store)

    async def off_loop(self, user: str, work: Callable[[MemStore], T]) -> T:
        """`call` on a thread, so that streams go on meanwhile."""
        return await asyncio.to_thread(self.call, user, work)

    async def recall(self, wanted: MemoryField, query: str) -> list[str]:
        """See `ziggurat.server.recalled.Recaller`: who said what."""
        cut = query[-MAX_QUERY_CHARACTERS:]
        hits = await self.off_loop(
            wanted.user, lambda store: find(store, cut, wanted.k, Filter(session=wanted.session))
        )
        memories = [hit.memory for hit in hits]
        return [f"{each.speaker}: {each.text}" if each.speaker else each.text for each in memories]

    def close(self) -> None:
        """Close every store."""
        with self._lock:
            for store in self._open.values():
                store.close()
            self._open.clear()


def make_router(stores: Stores) -> APIRouter:
    """The routes over some stores, which stay the caller's."""
    router = APIRouter(prefix="/v1/memories")

    @router.post("", summary="Remember")
    async def add(request: Request) -> Response:
        body = await _read(request, AddRequest)
        memories = [_new_memory(each) for each in body.memories]
        added = await stores.off_loop(body.user, lambda store: store.add(memories))
        return _answer({"object": "list", "data": [asdict(each) for each in added]})

    @router.post("/search", summary="Find memories")
    async def search(request: Request) -> Response:
        body = await _read(request, SearchRequest)
        names = ("kind", "agent", "session", "since_s", "until_s", "as_of_s")
        wanted = Filter(**{name: getattr(body, name) for name in names})
        hits = await stores.off_loop(body.user, lambda store: find(store, body.query, body.k, wanted))
        return _answer({"object": "list", "data": [hit_as_json(hit) for hit in hits]})

    @router.get("/{memory_id}", summary="One memory and its history")
    async def get(memory_id: str, user: str = "") -> Response:
        def work(store: MemStore) -> dict[str, Any]:
            history = [asdict(version) for version in store.history(memory_id)]
            return {**store.get(memory_id).as_dict(), "history": history, "derived": store.derived(memory_id)}

        return _answer(await stores.off_loop(user, work))

    @router.post("/{memory_id}", summary="Replace the text of a memory")
    async def update(memory_id: str, request: Request) -> Response:
        body = await _read(request, UpdateRequest)
        changed = await stores.off_loop(
            body.user,
            lambda store: store.update(
                memory_id, body.text, expected_version=body.expected_version, update_type=body.reason
            ),
        )
        return _answer(changed.as_dict())

    @router.delete("/{memory_id}", summary="Forget a memory")
    async def delete(memory_id: str, user: str = "", hard: bool = False) -> Response:
        receipt = await stores.off_loop(user, lambda store: store.delete(memory_id, hard=hard))
        return _answer(asdict(receipt))

    return router


def find(store: MemStore, query: str, k: int, wanted: Filter) -> list[Hit]:
    """Search, after a bounded step of encoding what is new: words find everything at once, meaning follows."""
    store.catch_up(_ENCODED_AT_ONCE)
    return store.search(query, k=k, wanted=wanted)


def hit_as_json(hit: Hit) -> dict[str, Any]:
    """The memory, its score and why."""
    return {"score": hit.score, "parts": hit.parts, "words": list(hit.words), "memory": hit.memory.as_dict()}


def _new_memory(each: MemoryIn) -> NewMemory:
    values = each.model_dump()
    return NewMemory(**{**values, "sources": tuple(values["sources"]), "tags": tuple(values["tags"])})


async def _read(request: Request, model: type[T]) -> T:
    content_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if content_type != "application/json":
        raise RequestError(
            f"the content type must be application/json, got {content_type or 'none'}", code="invalid_content_type"
        )
    parts, num_bytes = [], 0
    async for part in request.stream():
        num_bytes += len(part)
        if num_bytes > MAX_BODY_BYTES:
            raise BodyTooLarge(f"the body is over the limit of {MAX_BODY_BYTES} bytes; send less")
        parts.append(part)
    return decode_body(b"".join(parts), model, {}, max_model_len=0)  # type: ignore[type-var]  # every caller's is a pydantic model


def _answer(data: dict[str, Any]) -> Response:
    return Response(msgspec.json.encode(data), media_type="application/json")
