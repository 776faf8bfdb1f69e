# SPDX-License-Identifier: Apache-2.0
"""One HTTP request's work in the engine: several prompts at once, outputs as they come, everything aborted when the client leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import suppress
from typing import Any, Protocol, TypeVar

from starlette.types import Receive

from ziggurat.engine.grammar import GrammarMask
from ziggurat.engine.thinking import ThinkFirst
from ziggurat.engine.types import GenerateOutput, GenerateRequest
from ziggurat.errors import Draining, EngineError
from ziggurat.scheduling.masks import LogitsMask
from ziggurat.server.errors import GrammarFailed
from ziggurat.server.metrics import RequestTimer
from ziggurat.server.service import Service

T = TypeVar("T")


class ClientGone(Exception):
    """The client has closed its connection: there is nobody to answer."""


class Usage:
    """Token counts of all prompts and choices of one HTTP request."""

    def __init__(self) -> None:
        self._prompts: dict[int, tuple[int, int]] = {}
        self._outputs: dict[tuple[int, int], int] = {}

    def add(self, prompt_index: int, output: GenerateOutput) -> None:
        """Take over the totals that an output reports."""
        self._prompts[prompt_index] = (output.num_prompt_tokens, output.num_cached_tokens)
        self._outputs[prompt_index, output.index] = output.num_output_tokens

    def to_json(self) -> dict[str, Any]:
        """OpenAI's ``usage`` object."""
        prompt_tokens = sum(total for total, _ in self._prompts.values())
        completion_tokens = sum(self._outputs.values())
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
            "prompt_tokens_details": {"cached_tokens": sum(cached for _, cached in self._prompts.values())},
        }


def stop_reason(output: GenerateOutput, mask: LogitsMask | None) -> str | int | None:
    """What ended a choice: a stop string or token, or ``max_tokens`` when a JSON text was closed because they ran out."""
    if output.finish_reason != "stop" or not isinstance(mask, GrammarMask | ThinkFirst):
        return output.stop_reason
    return "max_tokens" if mask.was_closed(output.num_output_tokens) else output.stop_reason


def raise_if_failed(request: GenerateRequest, output: GenerateOutput) -> None:
    """An output that says that the engine failed is an error, the client's where its grammar is to blame.

    Raises:
        EngineError, GrammarFailed: it does.
    """
    if output.finish_reason == "error":
        mask = request.params.logits_mask
        if isinstance(mask, GrammarMask | ThinkFirst) and mask.failure is not None:
            raise GrammarFailed(f"the grammar of this request is {mask.failure}")
        raise EngineError(output.error or "the engine failed while running this request")


class Outputs(Protocol):
    """What an answer is made of."""

    usage: Usage

    def outputs(self) -> AsyncIterator[tuple[int, GenerateOutput]]:
        """(index of the prompt, output) until every choice has ended."""
        ...


class Generation:
    """The engine's streams behind one HTTP request, merged. Its owner must call `close`, whatever happens.

    Args:
        requests: one per prompt.
        timer: takes the times of first and later tokens.
    """

    def __init__(self, service: Service, requests: Sequence[GenerateRequest], timer: RequestTimer) -> None:
        self._service = service
        self._requests = requests
        self._timer = timer
        self._streams: list[AsyncIterator[GenerateOutput]] = []
        self._pumps: list[asyncio.Task[None]] = []
        self.usage = Usage()

    async def open(self) -> None:
        """Admit every prompt, or none.

        Raises:
            RequestError: one was refused; the others are given up.
        """
        for request in self._requests:
            self._streams.append(await self._service.start(request))
        self._timer.on_admitted()

    async def outputs(self) -> AsyncIterator[tuple[int, GenerateOutput]]:
        """(index of the prompt, output) until every choice has ended.

        Raises:
            EngineError: the engine failed on the way.
            GrammarFailed: the language that the request asked for is too complex to follow.
            Draining: the server gave the request up.
        """
        source = self._one() if len(self._streams) == 1 else self._merged()
        async for prompt_index, output in source:
            self.usage.add(prompt_index, output)
            self._timer.on_output(prompt_index, output)
            raise_if_failed(self._requests[prompt_index], output)
            if output.finish_reason == "abort":
                raise Draining("the request was ended because the server is shutting down")
            yield prompt_index, output

    async def _one(self) -> AsyncIterator[tuple[int, GenerateOutput]]:
        async for output in self._streams[0]:
            yield 0, output

    async def _merged(self) -> AsyncIterator[tuple[int, GenerateOutput]]:
        queue: asyncio.Queue[tuple[int, GenerateOutput | BaseException | None]] = asyncio.Queue()

        async def pump(index: int, stream: AsyncIterator[GenerateOutput]) -> None:
            try:
                async for output in stream:
                    queue.put_nowait((index, output))
                queue.put_nowait((index, None))
            except Exception as error:  # noqa: BLE001 - handed to the reader, which raises it
                queue.put_nowait((index, error))

        self._pumps = [asyncio.create_task(pump(index, stream)) for index, stream in enumerate(self._streams)]
        num_open = len(self._pumps)
        while num_open:
            index, item = await queue.get()
            if item is None:
                num_open -= 1
            elif isinstance(item, BaseException):
                raise item
            else:
                yield index, item

    async def close(self) -> None:
        """Abort what still runs. The engine has its blocks back at its next step."""
        for task in self._pumps:
            task.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)
        for stream in self._streams:
            aclose = getattr(stream, "aclose", None)
            if aclose is not None:
                await aclose()
        self._timer.on_close()


async def wait_disconnect(receive: Receive) -> None:
    """Return when the client has closed its connection. The body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def until_disconnect(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``, which is cancelled when the client leaves.

    Raises:
        ClientGone: it left first; ``work`` has ended by then.
    """
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(wait_disconnect(receive))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone
    finally:
        watch.cancel()
        task.cancel()
        with suppress(asyncio.CancelledError):
            await watch
        if not task.done():
            with suppress(asyncio.CancelledError, Exception):
                await task
