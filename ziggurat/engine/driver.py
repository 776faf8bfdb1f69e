# SPDX-License-Identifier: Apache-2.0
"""The thread that steps an engine against the wall clock. Everybody else talks to it through a mailbox.

::

    any thread                      engine thread
    submit, abort, call  --mailbox-->  commands, then one step, then on_outputs(list)
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from ziggurat.engine.interface import EngineInterface
from ziggurat.engine.types import AnyRequest, GenerateOutput
from ziggurat.errors import EngineError, ZigguratError

T = TypeVar("T")
Deliver = Callable[[list[GenerateOutput]], None]
_LOG = logging.getLogger(__name__)
# A step that had work but produced nothing (a prompt in the middle of its chunks does; so does a queue that waits for space).
_PAUSE_S = 0.001
_MAX_EMPTY_STEPS = 1000


class ThreadDriver:
    """Owns the one thread that calls an engine.

    Args:
        engine: used by that thread only, from `start` to `stop`.
        deliver: called on that thread with the outputs of each step that has any.
    """

    def __init__(self, engine: EngineInterface, deliver: Deliver) -> None:
        self._engine = engine
        self._deliver = deliver
        self._wakeup = threading.Condition()
        self._commands: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._is_stopping = False
        self._failure: str | None = None
        self._open: dict[str, AnyRequest] = {}
        self._unfinished: dict[str, set[int]] = {}
        self._thread = threading.Thread(target=self._run, name="ziggurat-engine", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def num_open_requests(self) -> int:
        """Requests that were accepted and have not ended."""
        return len(self._open)

    def open_request_ids(self) -> frozenset[str]:
        """Ids of those requests."""
        return frozenset(self._open.copy())

    @property
    def failure(self) -> str | None:
        """Why the engine can no longer be used, or None."""
        return self._failure

    def submit(self, request: AnyRequest) -> Future[None]:
        """Add a request; the future carries what ``engine.add`` raised."""
        return self.call(lambda: self._add(request))

    def abort(self, request_id: str) -> Future[None]:
        """End a request; its streams get their last outputs."""
        return self.call(lambda: self._engine.abort(request_id))

    def call(self, function: Callable[[], T]) -> Future[T]:
        """Run a function on the engine thread between two steps (``memory``, ``stats``)."""
        future: Future[T] = Future()
        with self._wakeup:
            if self._is_stopping or self._failure is not None:
                future.set_exception(EngineError(self._failure or "the engine has been stopped"))
                return future
            self._commands.append((function, future))
            self._wakeup.notify()
        return future

    def stop(self, timeout_s: float | None = None) -> bool:
        """Stop the thread after its current step; open requests end with an error. Returns whether the thread has ended."""
        with self._wakeup:
            self._is_stopping = True
            self._wakeup.notify()
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _add(self, request: AnyRequest) -> None:
        if request.request_id in self._open:
            raise EngineError(f"request id {request.request_id!r} is in use")
        self._engine.add(request)
        self._open[request.request_id] = request
        self._unfinished[request.request_id] = set(range(request.params.num_sequences))

    def _run(self) -> None:
        try:
            self._loop()
        except BaseException as error:
            _LOG.exception("the engine thread failed")
            self._fail(f"the engine failed: {type(error).__name__}: {error}")
            if not isinstance(error, Exception):
                raise
        else:
            self._fail("the engine has been stopped")

    def _loop(self) -> None:
        empty_steps = 0
        while True:
            with self._wakeup:
                while not self._commands and not self._is_stopping and not self._engine.has_work:
                    self._wakeup.wait()
                if self._is_stopping:
                    return
                commands = list(self._commands)
                self._commands.clear()
            for function, future in commands:
                _carry_out(function, future)
            if not self._engine.has_work:
                continue
            outputs = self._engine.step()
            self._hand_over(outputs)
            empty_steps = 0 if outputs else empty_steps + 1
            if empty_steps > _MAX_EMPTY_STEPS:
                # Work that never gives an output must not take a whole core.
                with self._wakeup:
                    self._wakeup.wait(_PAUSE_S)

    def _hand_over(self, outputs: list[GenerateOutput]) -> None:
        for output in outputs:
            if output.finish_reason is not None and output.request_id in self._unfinished:
                left = self._unfinished[output.request_id]
                left.discard(output.index)
                if not left:
                    del self._unfinished[output.request_id], self._open[output.request_id]
        if outputs:
            self._deliver(outputs)

    def _fail(self, message: str) -> None:
        """Nothing may vanish: every command gets an exception and every open continuation a last output."""
        with self._wakeup:
            self._failure = message
            commands = list(self._commands)
            self._commands.clear()
        for _, future in commands:
            if future.set_running_or_notify_cancel():
                future.set_exception(EngineError(message))
        self._hand_over(
            [
                _error_output(self._open[request_id], index, message)
                for request_id, indices in list(self._unfinished.items())
                for index in sorted(indices)
            ]
        )


def _carry_out(function: Callable[[], T], future: Future[T]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = function()
    except ZigguratError as error:
        future.set_exception(error)
    except BaseException as error:
        future.set_exception(error)
        raise
    else:
        future.set_result(result)


def _error_output(request: AnyRequest, index: int, message: str) -> GenerateOutput:
    return GenerateOutput(
        request_id=request.request_id,
        index=index,
        text="",
        tokens=(),
        finish_reason="error",
        stop_reason=None,
        num_prompt_tokens=len(request.prompt_ids),
        num_cached_tokens=0,
        num_output_tokens=0,
        error=message,
    )
