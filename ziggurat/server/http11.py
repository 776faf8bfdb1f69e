# SPDX-License-Identifier: Apache-2.0
"""uvicorn's HTTP/1.1 protocol with our body for bytes that are not HTTP at all, and with a limit on how long a request's head may take.

No request exists in either case, so no app can answer.

An answer that is given while the client is still sending is followed by a lingering close, as in nginx: a socket that is closed with bytes
unread makes the kernel send a reset, and the client would lose the answer that is on its way.
"""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from ziggurat.errors import RequestError
from ziggurat.server.errors import BodyTimeout, error_response

LINGER_S = 2.0


class LingeringTransport:
    """A transport whose `close` first lets the client read what was answered, if it is still sending."""

    def __init__(self, transport: asyncio.Transport, protocol: Http11) -> None:
        self._transport = transport
        self._protocol = protocol

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        """Nothing more will be written."""
        return self._protocol.is_lingering or self._transport.is_closing()

    def close(self) -> None:
        """Close, at once or after `LINGER_S` in which nothing is read: whoever sends without end is held up, not served."""
        protocol, transport = self._protocol, self._transport
        if protocol.is_lingering:
            return
        if transport.is_closing() or protocol.conn.their_state is not h11.SEND_BODY or not transport.can_write_eof():
            transport.close()
            return
        protocol.is_lingering = True
        transport.write_eof()
        transport.pause_reading()
        protocol.loop.call_later(LINGER_S, transport.close)


class Http11(H11Protocol):
    """Answers malformed requests like every other failure, then closes the connection.

    Attributes:
        head_timeout_s: a connection that has not brought a whole head by then is closed, with 408 if it brought a part.
        is_lingering: everything has been answered; what still comes is not read.
    """

    is_lingering = False

    head_timeout_s = 30.0
    _head_timer: asyncio.TimerHandle | None = None
    _has_part = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Called by asyncio."""
        super().connection_made(LingeringTransport(transport, self))  # type: ignore[arg-type]
        self._watch_head()

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        if self.is_lingering:
            return
        super().data_received(data)
        self._has_part = True
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio."""
        self._stop_watching()
        super().connection_lost(exc)

    def _watch_head(self) -> None:
        """The clock runs while a head is awaited. It is not wound up again by every byte: drop by drop is slow, too."""
        if self.conn.their_state is not h11.IDLE:
            self._stop_watching()
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(self.head_timeout_s, self._on_head_timeout)

    def _stop_watching(self) -> None:
        self._has_part = False
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _on_head_timeout(self) -> None:
        self._head_timer = None
        if self.transport.is_closing() or self.conn.their_state is not h11.IDLE:
            return
        if self._has_part:
            self._refuse(BodyTimeout(f"the head of the request did not arrive within {self.head_timeout_s:g} s"))
        self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Called by uvicorn when the parser gives up."""
        self._refuse(RequestError(f"not a valid HTTP request: {msg.rstrip('.')}", code="invalid_http"))
        self.transport.close()

    def _refuse(self, error: RequestError) -> None:
        status, body, _ = error_response(error)
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
            (b"x-request-id", uuid.uuid4().hex.encode()),
        ]
        events = (h11.Response(status_code=status, headers=headers), h11.Data(data=body), h11.EndOfMessage())
        self.transport.write(b"".join(self.conn.send(event) or b"" for event in events))


def http11(head_timeout_s: float) -> type[Http11]:
    """The protocol with a limit; uvicorn wants a class."""
    return type("Http11", (Http11,), {"head_timeout_s": head_timeout_s})
