# SPDX-License-Identifier: Apache-2.0
"""From the bytes of a request to a checked body: size cap while reading, JSON, unknown fields, types."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec
from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from ziggurat.errors import RequestError
from ziggurat.registry import nearest
from ziggurat.server.bodies import HeldBody
from ziggurat.server.errors import BodyTimeout, BodyTooLarge, UnsupportedField
from ziggurat.server.fields import refuse_unsupported

Model = TypeVar("Model", bound=BaseModel)

# A body over the cap is read on and forgotten up to this many caps: a client that is still sending would otherwise see a reset
# connection and never the 413.
DISCARD_CAPS = 16
# JSON values per body: enough for a few prompts of token ids as long as the context.
MIN_VALUES = 262_144
VALUES_PER_TOKEN = 4
MAX_NAME = 100


async def parse_body(
    request: Request, held: HeldBody, model: type[Model], unsupported: Mapping[str, Any], *, max_model_len: int
) -> Model:
    """The request's JSON body as ``model``.

    Raises:
        RequestError: wrong content type, too large, not JSON, unknown field or wrong type; ``param`` is the field's path.
        QueueFull: the bodies of other requests fill the memory that is there for bodies.
        UnsupportedField: a known field that is not built.
    """
    content_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if content_type != "application/json":
        got = content_type or "none"
        raise RequestError(f"the content type must be application/json, got {got}", code="invalid_content_type")
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise RequestError(f"the body must not be compressed, got content encoding {encoding}", code="invalid_encoding")
    return decode_body(await read_body(request, held), model, unsupported, max_model_len=max_model_len)


def decode_body(raw: bytes, model: type[Model], unsupported: Mapping[str, Any], *, max_model_len: int) -> Model:
    """JSON text as ``model``.

    Raises:
        RequestError, UnsupportedField: see `parse_body`.
    """
    refuse_many_values(raw, max_model_len)
    try:
        body = msgspec.json.decode(raw)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise RequestError(f"the body is not valid JSON: {error}", code="invalid_json") from None
    if not isinstance(body, dict):
        raise RequestError(f"the body must be a JSON object, got {type(body).__name__}", code="invalid_json")
    body = refuse_unsupported(body, unsupported)
    refuse_unknown(body, model, unsupported)
    try:
        return model.model_validate(body)
    except ValidationError as error:
        raise first_error(error, model) from None


async def read_body(request: Request, held: HeldBody) -> bytes:
    """All bytes of the body, never holding more than the cap.

    Raises:
        BodyTooLarge, BodyTimeout: the client sent too much, or too slowly.
        QueueFull: see `parse_body`.
    """
    config = held.config
    cap = config.max_body_bytes
    refuse_announced(request, cap)
    parts: list[bytes] = []
    num_bytes = 0
    try:
        async with asyncio.timeout(config.body_timeout):
            async for part in request.stream():
                num_bytes += len(part)
                held.resize(num_bytes if num_bytes <= cap else 0)
                if num_bytes <= cap:
                    parts.append(part)
                else:
                    parts.clear()
                    await held.pause_discarding()
                if num_bytes > cap * DISCARD_CAPS:
                    break
    except TimeoutError:
        raise BodyTimeout(f"the body did not arrive within {config.body_timeout:g} s") from None
    if num_bytes > cap:
        raise _too_large(cap)
    return b"".join(parts)


def refuse_announced(request: Request, cap: int) -> None:
    """Do not begin to read what cannot be taken: the client waits for a go-ahead, or it announces more than would be read and forgotten.

    Raises:
        BodyTooLarge: the announced length is over the cap, and one of the two holds.
    """
    length = request.headers.get("content-length", "")
    is_waiting = request.headers.get("expect", "").lower() == "100-continue"
    if length.isdigit() and int(length) > (cap if is_waiting else cap * DISCARD_CAPS):
        raise _too_large(cap)


def _too_large(cap: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body is over the limit of {cap} bytes; send less or raise --max-body-size")


def refuse_many_values(raw: bytes, max_model_len: int) -> None:
    """A list or an object costs some hundred bytes in memory and three in the body: bound their number before anything is parsed.

    Separators inside strings count too, which is harmless: a text with that many would not fit the context.

    Raises:
        BodyTooLarge: too many.
    """
    limit = max(MIN_VALUES, VALUES_PER_TOKEN * max_model_len)
    num_values = sum(raw.count(separator) for separator in (b",", b"[", b"{"))
    if num_values > limit:
        raise BodyTooLarge(f"the body has {num_values} JSON values and at most {limit} are read; send less at a time")


def refuse_unknown(body: dict[str, Any], model: type[BaseModel], unsupported: Mapping[str, Any]) -> None:
    """Name the first unknown field. Pydantic would collect them all.

    Raises:
        RequestError: there is one.
    """
    for name in body:
        if name not in model.model_fields:
            hint = nearest(name[:MAX_NAME], [*model.model_fields, *unsupported])
            raise RequestError(f"unknown field {name[:MAX_NAME]!r}{hint}", param=name[:MAX_NAME], code="unknown_field")


def first_error(error: ValidationError, model: type[BaseModel]) -> Exception:
    """The first of pydantic's complaints as one of ours."""
    detail = error.errors(include_url=False)[0]
    path = ".".join(str(part)[:MAX_NAME] for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        return RequestError(f"unknown field {path!r}", param=path, code="unknown_field")
    if detail["type"] == "missing":
        return RequestError(f"the field {path!r} is required", param=path)
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "not_built":
        return UnsupportedField(f"{path}: {message}", feature=detail["ctx"]["feature"], param=path)
    param = path or named_field(message, model)
    return RequestError(f"{path}: {message}" if path else message, param=param)


def named_field(message: str, model: type[BaseModel]) -> str | None:
    """The field that a message about the whole body begins with."""
    word = message.split(" ", 1)[0]
    return word if word in model.model_fields else None
