# SPDX-License-Identifier: Apache-2.0
"""A server's life: bind, answer /health, load the model on a thread, serve, drain on a signal, end.

::

    bind -> listen -> loading --------> ready ----------> draining -> closed     exit 0
                        | signal          | engine dies       | second signal
                        v                 v                   v
                     exit 128+n        EngineError          exit 128+n
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import uvicorn
from fastapi import APIRouter

from ziggurat.errors import EngineError
from ziggurat.server.app import create_app
from ziggurat.server.config import ServerConfig
from ziggurat.server.console import Announce, announcer
from ziggurat.server.http11 import http11
from ziggurat.server.listen import address_url, bind_socket, close_socket, unlink_socket
from ziggurat.server.pressure import follow_pressure
from ziggurat.server.recalled import Recaller
from ziggurat.server.reporter import report
from ziggurat.server.service import Service
from ziggurat.server.serving import Rooms
from ziggurat.server.state import ServerState

log = logging.getLogger("ziggurat.server")

WATCH_INTERVAL_S = 0.1
# Error chunks of a dead engine and last lines of drained streams get this long to reach their clients.
FLUSH_TIMEOUT_S = 2.0


def run_server(
    config: ServerConfig,
    load: Callable[[], Any],
    *,
    attach: Callable[[Any], Service] | None = None,
    routers: Sequence[APIRouter] = (),
    recaller: Recaller | None = None,
    announce: Announce | None = None,
) -> int:
    """Serve until a signal. Blocks; call it on the main thread.

    Args:
        load: makes the engine; runs on a thread while /health already answers.
        attach: makes the service from what ``load`` returned, on the event loop; default `EngineService`.
        routers: further routes.
        recaller: where ``memory`` of a chat comes from.
        announce: gets the lines of the server's life (address, time to ready); by default they are printed, or logged if the log is JSON.

    Returns:
        the exit code: 0 after a drain, 128 + signal number if it was cut short.

    Raises:
        ConfigError: the address cannot be had; before ``load`` is called.
        ZigguratError: what ``load`` raised; EngineError: the engine died while serving.
    """
    listener = bind_socket(config)
    run = _Run(config, listener, announce or announcer(config.log_format), recaller)
    try:
        return asyncio.run(run.main(load, attach or _attach_engine, routers))
    finally:
        close_socket(listener, config)


def _attach_engine(engine: Any) -> Service:
    from ziggurat.server.engine_service import EngineService  # not needed by whoever brings another service

    return EngineService(engine)


class _Server(uvicorn.Server):
    """uvicorn without its own signal handling: ours drains first."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@dataclass(slots=True)
class _Signals:
    """The signals that came; ``arrived`` is set by each."""

    arrived: asyncio.Event
    first: int | None = None

    def install(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal, number)

    def _on_signal(self, number: int) -> None:
        self.first = number
        self.arrived.set()

    def take(self) -> int:
        """The signal that came; the next one sets ``arrived`` anew."""
        assert self.first is not None
        self.arrived.clear()
        return self.first


class _Run:
    def __init__(
        self, config: ServerConfig, listener: socket.socket, announce: Announce, recaller: Recaller | None
    ) -> None:
        self._recaller = recaller
        self._config = config
        self._listener = listener
        self._announce = announce
        self._state = ServerState()
        self._signals = _Signals(asyncio.Event())
        self._server: _Server
        self._http: asyncio.Task[None]

    async def main(
        self, load: Callable[[], Any], attach: Callable[[Any], Service], routers: Sequence[APIRouter]
    ) -> int:
        began_s = time.monotonic()
        self._signals.install()
        app = create_app(self._state, self._config, routers=routers, recaller=self._recaller)
        rooms: Rooms = app.state.rooms
        settings = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="off",
            http=http11(self._config.body_timeout),
            ws="none",
            server_header=False,
            timeout_graceful_shutdown=max(1, round(FLUSH_TIMEOUT_S)),
        )
        # Its warnings are about what clients sent, and the clients are told.
        logging.getLogger("uvicorn").setLevel(logging.ERROR)
        self._server = _Server(settings)
        self._http = asyncio.create_task(self._server.serve(sockets=[self._listener]))
        url = address_url(self._listener)
        self._announce("listening", f"Ziggurat listens on {url} and is loading the model", {"url": url})
        try:
            service = attach(await self._load(load))
            self._state.set_ready(service)
            took_s, name = time.monotonic() - began_s, service.model_names[0]
            facts = {"url": url, "model": name, "duration_s": round(took_s, 3)}
            self._announce("ready", f"ready in {took_s:.1f} s: {url} serves {name}", facts)
            return await self._serve(service, rooms)
        finally:
            await self._stop_http()

    async def _load(self, load: Callable[[], Any]) -> Any:
        """What ``load`` returns. A signal meanwhile ends the process at once: a thread inside native code cannot be asked to stop."""
        loop = asyncio.get_running_loop()
        loaded: asyncio.Future[Any] = loop.create_future()

        def work() -> None:
            try:
                result, error = load(), None
            except BaseException as raised:  # noqa: BLE001 - handed to the event loop, which raises it
                result, error = None, raised
            # The loop may be closed by now if a signal came first.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(_settle, loaded, result, error)

        threading.Thread(target=work, name="ziggurat-load", daemon=True).start()
        arrived = asyncio.create_task(self._signals.arrived.wait())
        await asyncio.wait({loaded, arrived, self._http}, return_when=asyncio.FIRST_COMPLETED)
        if arrived.done():
            self._leave_now("interrupted while loading the model")
        arrived.cancel()
        if self._http.done():
            self._http.result()
            raise EngineError("the HTTP server ended while the model was loading")
        return loaded.result()

    async def _serve(self, service: Service, rooms: Rooms) -> int:
        """Until a signal (drain, return the exit code) or the engine's death (raise)."""
        tasks = []
        if self._config.log_interval > 0:
            tasks.append(asyncio.create_task(report(service, rooms.metrics, self._config.log_interval)))
        if self._config.memory_pressure == "follow":
            tasks.append(asyncio.create_task(follow_pressure(service)))
        try:
            while not self._signals.arrived.is_set():
                self._raise_if_dead(service)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._signals.arrived.wait(), WATCH_INTERVAL_S)
            return await self._drain(service)
        finally:
            for task in tasks:
                task.cancel()

    def _raise_if_dead(self, service: Service) -> None:
        failure = service.failure()
        if failure is not None:
            self._state.set_failed(failure)
            raise EngineError(failure)

    async def _drain(self, service: Service) -> int:
        number = self._signals.take()
        self._state.set_draining()
        name, num_open = signal.Signals(number).name, self._state.num_live
        timeout_s = self._config.shutdown_timeout
        self._announce(
            "draining",
            f"{name}: no new requests; {num_open} running get up to {timeout_s:g} s (again: abort)",
            {"signal": name, "num_open": num_open, "timeout_s": timeout_s},
        )
        drain = asyncio.create_task(service.drain(timeout_s))
        again = asyncio.create_task(self._signals.arrived.wait())
        await asyncio.wait({drain, again}, return_when=asyncio.FIRST_COMPLETED)
        if again.done():
            self._leave_now("second signal: running requests are aborted")
        again.cancel()
        if not drain.result():
            self._announce("aborted", "the shutdown timeout has passed; the remaining requests were aborted", {})
        await self._wait_streams()
        await self._stop_http()
        await service.close()
        self._announce("closed", "closed", {})
        return 0

    async def _wait_streams(self) -> None:
        """Let the answers of requests that have ended reach their clients."""
        deadline_s = time.monotonic() + FLUSH_TIMEOUT_S
        while self._state.num_live and time.monotonic() < deadline_s:
            await asyncio.sleep(0.02)

    async def _stop_http(self) -> None:
        if not self._http.done():
            if self._state.phase == "failed":
                await self._wait_streams()
            self._server.should_exit = True
        with contextlib.suppress(asyncio.CancelledError):
            await self._http

    def _leave_now(self, why: str) -> NoReturn:
        """End the process without waiting for threads that cannot be stopped; the operating system takes the memory back."""
        number = self._signals.take()
        self._announce("interrupted", why, {"signal": signal.Signals(number).name})
        unlink_socket(self._config)
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(128 + number)


def _settle(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.cancelled():
        return
    if error is None:
        future.set_result(result)
    elif isinstance(error, StopIteration):
        future.set_exception(RuntimeError("the loader raised StopIteration"))
    else:
        future.set_exception(error)
