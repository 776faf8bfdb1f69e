# SPDX-License-Identifier: Apache-2.0
"""uvicorn's HTTP/1.1 protocol with our body for bytes that are not HTTP at all: no request exists then, so no app can answer."""

from __future__ import annotations

import uuid

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from ziggurat.errors import RequestError
from ziggurat.server.errors import error_response


class Http11(H11Protocol):
    """Answers malformed requests like every other failure, then closes the connection."""

    def send_400_response(self, msg: str) -> None:
        """Called by uvicorn when the parser gives up."""
        error = RequestError(f"not a valid HTTP request: {msg.rstrip('.')}", code="invalid_http")
        status, body, _ = error_response(error)
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
            (b"x-request-id", uuid.uuid4().hex.encode()),
        ]
        events = (h11.Response(status_code=status, headers=headers), h11.Data(data=body), h11.EndOfMessage())
        self.transport.write(b"".join(self.conn.send(event) or b"" for event in events))
        self.transport.close()
