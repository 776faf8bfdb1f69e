# SPDX-License-Identifier: Apache-2.0
"""An engine for asyncio: streams of outputs, cancelled by closing them. One hop to the event loop per step, not per token."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from ziggurat.engine.driver import ThreadDriver
from ziggurat.engine.handover import Handover
from ziggurat.engine.interface import EngineInterface, ModelInfo
from ziggurat.engine.types import AnyRequest, BudgetChange, GenerateOutput
from ziggurat.errors import Draining, EngineError

_LOG = logging.getLogger(__name__)


class OutputStream:
    """Outputs of one request, of all its continuations, in order; ends after the last one of each has finished.

    Closing it early aborts the request. Use `contextlib.aclosing`, or iterate to the end.
    """

    def __init__(self, owner: AsyncEngine, request: AnyRequest) -> None:
        self._owner = owner
        self._request = request
        self._queue: asyncio.Queue[GenerateOutput] = asyncio.Queue()
        self._unfinished = set(range(request.params.num_sequences))
        self._is_closed = False

    def __aiter__(self) -> OutputStream:
        return self

    async def __anext__(self) -> GenerateOutput:
        if not self._unfinished or self._is_closed:
            raise StopAsyncIteration
        try:
            output = await self._queue.get()
        except BaseException:  # cancelled: nobody will read the rest
            self._close()
            raise
        if output.finish_reason is not None:
            self._unfinished.discard(output.index)
        return output

    async def aclose(self) -> None:
        """Abort the request if it has not ended. Returns at once; the engine frees its memory before its next step."""
        self._close()

    def _close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            if self._unfinished:
                self._owner.abort(self._request.request_id)

    def _push(self, output: GenerateOutput) -> None:
        self._queue.put_nowait(output)


class AsyncEngine:
    """Runs an engine on its own thread for the event loop that is running when this object is made.

    Owns the engine: `close` closes it.
    """

    def __init__(self, engine: EngineInterface) -> None:
        self.engine = engine
        self._loop = asyncio.get_running_loop()
        self._streams: dict[str, OutputStream] = {}
        self._unfinished: dict[str, set[int]] = {}
        self._is_draining = False
        self._is_idle = asyncio.Event()
        self._is_idle.set()
        self._driver = ThreadDriver(engine, Handover(self._loop, self._distribute).put)
        self._driver.start()

    @property
    def model(self) -> ModelInfo:
        """Facts about the model."""
        return self.engine.model

    @property
    def failure(self) -> str | None:
        """Why the engine can no longer be used, or None."""
        return self._driver.failure

    @property
    def num_open_requests(self) -> int:
        """Requests accepted and not ended."""
        return len(self._unfinished)

    async def submit(self, request: AnyRequest) -> OutputStream:
        """Start a request.

        Raises:
            RequestError, QueueFull: what ``engine.add`` says.
            Draining: `drain` was called.
            EngineError: the engine failed, or the request id is in use.
        """
        if self._is_draining:
            raise Draining("the server is shutting down and takes no new requests")
        request_id = request.request_id
        if request_id in self._streams or request_id in self._unfinished:
            raise EngineError(f"request id {request_id!r} is in use")
        stream = OutputStream(self, request)
        # The streams must be known before the first output can arrive.
        self._streams[request_id] = stream
        self._unfinished[request_id] = set(range(request.params.num_sequences))
        self._is_idle.clear()
        added = self._driver.submit(request)
        try:
            await asyncio.wrap_future(added)
        except asyncio.CancelledError:
            # It may have been added all the same; an unknown id is ignored by abort.
            self._driver.abort(request_id).add_done_callback(
                lambda _: self._call_soon(self._forget_if_absent, request_id)
            )
            self._streams.pop(request_id, None)
            raise
        except BaseException:
            self._forget(request_id)
            raise
        return stream

    async def generate(self, request: AnyRequest) -> AsyncIterator[GenerateOutput]:
        """The outputs of one request. Errors of `submit` are raised at the first item; closing the generator aborts."""
        stream = await self.submit(request)
        try:
            async for output in stream:
                yield output
        finally:
            await stream.aclose()

    def abort(self, request_id: str) -> None:
        """End a request; its stream, if somebody still reads it, gets its last outputs."""
        self._driver.abort(request_id)

    async def reset_prefix_cache(self) -> int:
        """`EngineInterface.reset_prefix_cache`, between two steps."""
        return await asyncio.wrap_future(self._driver.call(self.engine.reset_prefix_cache))

    async def save_session(self, client: str, session_id: str, path: Path) -> dict[str, int]:
        """`EngineInterface.save_session`, between two steps."""
        return await asyncio.wrap_future(self._driver.call(lambda: self.engine.save_session(client, session_id, path)))

    async def restore_session(self, client: str, session_id: str, adapter: str, path: Path) -> dict[str, int]:
        """`EngineInterface.restore_session`, between two steps."""
        call = self._driver.call(lambda: self.engine.restore_session(client, session_id, adapter, path))
        return await asyncio.wrap_future(call)

    async def forget_session(self, client: str, session_id: str) -> None:
        """`EngineInterface.forget_session`, between two steps."""
        await asyncio.wrap_future(self._driver.call(lambda: self.engine.forget_session(client, session_id)))

    async def load_lora(self, name: str, folder: Path) -> None:
        """`EngineInterface.load_lora`, between two steps."""
        await asyncio.wrap_future(self._driver.call(lambda: self.engine.load_lora(name, folder)))

    async def unload_lora(self, name: str) -> None:
        """`EngineInterface.unload_lora`, between two steps."""
        await asyncio.wrap_future(self._driver.call(lambda: self.engine.unload_lora(name)))

    async def set_memory(self, num_bytes: int) -> BudgetChange:
        """`EngineInterface.set_memory`, between two steps."""
        return await asyncio.wrap_future(self._driver.call(lambda: self.engine.set_memory(num_bytes)))

    async def memory(self) -> dict[str, Any]:
        """`EngineInterface.memory`, taken between two steps."""
        return await asyncio.wrap_future(self._driver.call(self.engine.memory))

    async def stats(self) -> dict[str, float]:
        """`EngineInterface.stats`, taken between two steps."""
        return await asyncio.wrap_future(self._driver.call(self.engine.stats))

    async def drain(self, timeout_s: float) -> bool:
        """Take no new requests and wait for the open ones; after the timeout they are aborted. Returns whether all ended by themselves."""
        self._is_draining = True
        try:
            await asyncio.wait_for(self._is_idle.wait(), timeout_s)
        except TimeoutError:
            for request_id in list(self._unfinished):
                self.abort(request_id)
            if self.failure is None:
                await self._is_idle.wait()
            return False
        return True

    async def close(self) -> None:
        """Stop the thread and close the engine. Open streams end with an error output."""
        self._is_draining = True
        has_ended = await asyncio.to_thread(self._driver.stop, 60.0)
        if not has_ended:
            raise EngineError("the engine thread did not end within 60 s; its memory is not given back")
        self.engine.close()
        # Let the last outputs, which the thread left in the loop's queue, reach their streams.
        await asyncio.sleep(0)

    def _call_soon(self, function: Any, *arguments: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            _LOG.debug("a closed event loop keeps no account of its requests")

    def _distribute(self, outputs: list[GenerateOutput]) -> None:
        """On the event loop, the outputs of one step."""
        for output in outputs:
            stream = self._streams.get(output.request_id)
            if stream is not None:
                stream._push(output)
            left = self._unfinished.get(output.request_id)
            if left is not None and output.finish_reason is not None:
                left.discard(output.index)
                if not left:
                    self._forget(output.request_id)

    def _forget_if_absent(self, request_id: str) -> None:
        # After the abort of a request whose submit was cancelled: if it had never been added, no output will come.
        if request_id not in self._driver.open_request_ids():
            self._forget(request_id)

    def _forget(self, request_id: str) -> None:
        self._streams.pop(request_id, None)
        self._unfinished.pop(request_id, None)
        if not self._unfinished:
            self._is_idle.set()
