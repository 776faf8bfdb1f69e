# SPDX-License-Identifier: Apache-2.0
"""Server-sent events, built by hand: a chunk is a fixed frame, made once per stream, around the few bytes that change."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ziggurat.errors import ZigguratError
from ziggurat.server.errors import error_object
from ziggurat.server.generation import ClientGone, until_disconnect

log = logging.getLogger("ziggurat.server")

DONE = b"data: [DONE]\n\n"
encode = msgspec.json.Encoder().encode


def event(payload: Any) -> bytes:
    """One ``data:`` line."""
    return b"data: " + encode(payload) + b"\n\n"


class ChunkFrame:
    """The bytes around ``choices`` that every chunk of a stream shares.

    Args:
        head: ``id``, ``object``, ``created``, ``model``.
        has_null_usage: every chunk but the usage chunk says ``"usage": null`` (OpenAI's shape with ``include_usage``).
    """

    def __init__(self, head: dict[str, Any], *, has_null_usage: bool) -> None:
        self._head = head
        self._open = b"data: " + encode(head)[:-1] + b',"choices":['
        self._shut = b'],"usage":null}\n\n' if has_null_usage else b"]}\n\n"

    def chunk(self, choice: dict[str, Any], usage: dict[str, Any] | None = None) -> bytes:
        """A chunk with one choice; ``usage`` only for running usage."""
        if usage is not None:
            return self._open + encode(choice) + b'],"usage":' + encode(usage) + b"}\n\n"
        return self._open + encode(choice) + self._shut

    def usage_chunk(self, usage: dict[str, Any]) -> bytes:
        """The chunk without choices that carries the usage."""
        return event({**self._head, "choices": [], "usage": usage})


class EventStream(Response):
    """Sends byte chunks as they come and stops the producer at once when the client leaves.

    Args:
        chunks: the events, without ``[DONE]``. An error inside becomes one data line, and the stream ends without ``[DONE]``.
        close: called exactly once at the end, however it came.
    """

    media_type = "text/event-stream"

    def __init__(self, chunks: AsyncIterator[bytes], close: Callable[[], Awaitable[None]]) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._chunks = chunks
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await until_disconnect(receive, self._send_all(send))
        except ClientGone:
            log.debug("client left while streaming")
        finally:
            await asyncio.shield(self._close())

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            async for chunk in self._chunks:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            last = DONE
        except ZigguratError as error:
            last = event({"error": error_object(error)})
        except Exception as error:  # noqa: BLE001 - logged by error_object; the client gets a line instead of silence
            last = event({"error": error_object(error)})
        await send({"type": "http.response.body", "body": last, "more_body": False})
