# SPDX-License-Identifier: Apache-2.0
"""The life of one server: loading -> ready -> draining, or failed from anywhere. Routes ask it for the service."""

from __future__ import annotations

import time
from typing import Literal

from ziggurat.errors import Draining, EngineError, Loading
from ziggurat.server.service import Service

Phase = Literal["loading", "ready", "draining", "failed"]


class ServerState:
    """What the routes of one app share. Changed on the event loop only.

    Attributes:
        phase: where in its life the server is.
        started_s, created_unix_s: when it began, by the monotonic and by the calendar's clock.
    """

    def __init__(self, service: Service | None = None) -> None:
        self.service = service
        self.phase: Phase = "loading" if service is None else "ready"
        self.started_s = time.monotonic()
        self.created_unix_s = int(time.time())
        self._failure = ""
        self._live_ids: set[str] = set()

    def set_ready(self, service: Service) -> None:
        """The model is there. A drain that began in the meantime goes on."""
        self.service = service
        if self.phase == "loading":
            self.phase = "ready"

    def set_draining(self) -> None:
        """No new work from here on."""
        if self.phase != "failed":
            self.phase = "draining"

    def set_failed(self, reason: str) -> None:
        """The engine is dead."""
        self.phase = "failed"
        self._failure = reason

    def ready_service(self) -> Service:
        """The service, if new work may begin.

        Raises:
            Loading, Draining, EngineError: it may not.
        """
        if self.phase == "draining":
            raise Draining("the server is shutting down and takes no new requests; send this one elsewhere or later")
        if self.phase == "failed":
            raise EngineError(f"the engine has failed and the server is going down: {self._failure}")
        if self.service is None:
            uptime_s = time.monotonic() - self.started_s
            raise Loading(f"the model is still being loaded ({uptime_s:.0f} s so far); try again in a moment")
        return self.service

    def take_id(self, wanted: str) -> str:
        """``wanted``, or a variant of it when a live request has that id already. Give it back with `drop_id`."""
        free, number = wanted, 2
        while free in self._live_ids:
            free, number = f"{wanted}~{number}", number + 1
        self._live_ids.add(free)
        return free

    def drop_id(self, request_id: str) -> None:
        """The request has ended."""
        self._live_ids.discard(request_id)

    @property
    def num_live(self) -> int:
        """Requests between admission and their last byte."""
        return len(self._live_ids)
