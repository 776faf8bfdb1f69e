# SPDX-License-Identifier: Apache-2.0
"""What chat and completions do alike: check the model, admit, answer at once or as a stream, and clean up whatever happens."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ziggurat.errors import ContextLengthExceeded, UnknownModel
from ziggurat.registry import nearest
from ziggurat.scheduling.sampling import SamplingParams
from ziggurat.server.auth import client_of
from ziggurat.server.bodies import Bodies
from ziggurat.server.generation import ClientGone, Generation, until_disconnect
from ziggurat.server.metrics import RequestTimer, ServerMetrics
from ziggurat.server.params import generate_requests
from ziggurat.server.recalled import Recaller
from ziggurat.server.schemas import ChatRequest, CompletionRequest
from ziggurat.server.service import ModelText
from ziggurat.server.sse import EventStream
from ziggurat.server.state import ServerState

T = TypeVar("T")
CLIENT_CLOSED_REQUEST = 499  # nginx's code; nobody is there to read it
# Below this many characters the hop to a thread costs more than the work.
MAX_INLINE_CHARACTERS = 4096
MAX_NAME = 200


@dataclass(frozen=True, slots=True)
class Rooms:
    """What the routes of one app share."""

    state: ServerState
    metrics: ServerMetrics
    bodies: Bodies
    recaller: Recaller | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """How one kind of request answers.

    Attributes:
        collect: the whole answer as JSON data.
        stream: the answer as server-sent events.
    """

    collect: Callable[[Generation], Awaitable[dict[str, Any]]]
    stream: Callable[[Generation], AsyncIterator[bytes]]


def check_model(service: ModelText, wanted: str | None) -> str:
    """The name the answer carries; a request without a model gets the one that is served.

    Raises:
        UnknownModel: not served; lists what is.
    """
    names = list(service.model_names)
    if wanted is None or wanted in names:
        return wanted or names[0]
    shown = wanted[:MAX_NAME]
    hint = nearest(shown, names)
    raise UnknownModel(f"the model {shown!r} is not served here{hint or '.'} Served: {', '.join(names)}", param="model")


def adapter_of(service: ModelText, model: str) -> str:
    """The LoRA adapter that a checked model name means; "" for the base model."""
    return "" if model == service.model_names[0] else model


def json_response(data: Any) -> Response:
    """An answer of 200."""
    return Response(msgspec.json.encode(data), media_type="application/json")


def new_id(prefix: str, wanted: str | None) -> str:
    """``chatcmpl-..``, ``cmpl-..``, ``embd-..``: the client's request_id if it sent one, else random."""
    return f"{prefix}-{wanted or uuid.uuid4().hex}"


async def off_loop(function: Callable[[], T], num_characters: int) -> T:
    """Run a tokenizer's work; long texts on a thread, so that other streams go on."""
    if num_characters <= MAX_INLINE_CHARACTERS:
        return function()
    return await asyncio.to_thread(function)


async def answer(
    rooms: Rooms,
    request: Request,
    body: ChatRequest | CompletionRequest,
    request_id: str,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams,
    make_reply: Callable[[str, int], Reply],
) -> Response:
    """Run a checked request to its end.

    Args:
        request_id: the id the client asked for; a live twin gets a suffix.
        make_reply: called with the final id and the time of creation (Unix seconds).

    Raises:
        RequestError, EngineError: refused or failed before the first byte.
    """
    service = rooms.state.ready_service()
    final_id = rooms.state.take_id(request_id)
    adapter = adapter_of(service, check_model(service, body.model))
    requests = generate_requests(body, final_id, prompts, params, client_of(request, body.user), adapter)
    timer = RequestTimer(
        rooms.metrics,
        num_choices=len(prompts) * params.num_sequences,
        num_asked=params.n,
        max_tokens=params.max_tokens,
    )
    generation = Generation(service, requests, timer)
    reply = make_reply(final_id, int(time.time()))
    is_handed_on = False

    async def close() -> None:
        await generation.close()
        rooms.state.drop_id(final_id)

    async def run() -> dict[str, Any] | None:
        await generation.open()
        return None if body.stream else await reply.collect(generation)

    try:
        result = await until_disconnect(request.receive, run())
        if result is not None:
            return Response(msgspec.json.encode(result), media_type="application/json")
        is_handed_on = True
        return EventStream(reply.stream(generation), close)
    except ContextLengthExceeded as error:
        # The engine does not know by which field the prompt came.
        error.param = "messages" if isinstance(body, ChatRequest) else "prompt"
        raise
    except ClientGone:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    finally:
        if not is_handed_on:
            await asyncio.shield(close())
