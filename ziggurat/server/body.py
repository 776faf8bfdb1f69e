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
from ziggurat.server.config import ServerConfig
from ziggurat.server.errors import BodyTimeout, BodyTooLarge, UnsupportedField
from ziggurat.server.fields import refuse_unsupported

Model = TypeVar("Model", bound=BaseModel)

# A body over the cap is read on and forgotten up to this many caps: a client that is still sending would otherwise see a reset
# connection and never the 413.
DISCARD_CAPS = 16


async def parse_body(
    request: Request, config: ServerConfig, model: type[Model], unsupported: Mapping[str, Any]
) -> Model:
    """The request's JSON body as ``model``.

    Raises:
        RequestError: wrong content type, too large, not JSON, unknown field or wrong type; ``param`` is the field's path.
        UnsupportedField: a known field that is not built.
    """
    content_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if content_type != "application/json":
        got = content_type or "none"
        raise RequestError(f"the content type must be application/json, got {got}", code="invalid_content_type")
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise RequestError(f"the body must not be compressed, got content encoding {encoding}", code="invalid_encoding")
    raw = await read_body(request, config)
    try:
        body = msgspec.json.decode(raw)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise RequestError(f"the body is not valid JSON: {error}", code="invalid_json") from None
    if not isinstance(body, dict):
        raise RequestError(f"the body must be a JSON object, got {type(body).__name__}", code="invalid_json")
    body = refuse_unsupported(body, unsupported)
    try:
        return model.model_validate(body)
    except ValidationError as error:
        raise first_error(error, model, unsupported) from None


async def read_body(request: Request, config: ServerConfig) -> bytes:
    """All bytes of the body, never holding more than the cap.

    Raises:
        BodyTooLarge, BodyTimeout: the client sent too much, or too slowly.
    """
    cap = config.max_body_bytes
    parts: list[bytes] = []
    num_bytes = 0
    try:
        async with asyncio.timeout(config.body_timeout):
            async for part in request.stream():
                num_bytes += len(part)
                if num_bytes <= cap:
                    parts.append(part)
                else:
                    parts.clear()
                if num_bytes > cap * DISCARD_CAPS:
                    break
    except TimeoutError:
        raise BodyTimeout(f"the body did not arrive within {config.body_timeout:g} s") from None
    if num_bytes > cap:
        raise BodyTooLarge(f"the body is over the limit of {cap} bytes; send less or raise --max-body-bytes")
    return b"".join(parts)


def first_error(error: ValidationError, model: type[BaseModel], unsupported: Mapping[str, Any]) -> Exception:
    """The first of pydantic's complaints as one of ours."""
    detail = error.errors(include_url=False)[0]
    path = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        known = [*model.model_fields, *unsupported] if len(detail["loc"]) == 1 else []
        hint = nearest(str(detail["loc"][-1]), known)
        return RequestError(f"unknown field {path!r}{hint}", param=path, code="unknown_field")
    if detail["type"] == "missing":
        return RequestError(f"the field {path!r} is required", param=path)
    message = detail["msg"].removeprefix("Value error, ")
    if message.startswith("tools are not built"):
        return UnsupportedField(f"{path}: {message}", feature="tools", param=path)
    param = path or named_field(message, model)
    return RequestError(f"{path}: {message}" if path else message, param=param)


def named_field(message: str, model: type[BaseModel]) -> str | None:
    """The field that a message about the whole body begins with."""
    word = message.split(" ", 1)[0]
    return word if word in model.model_fields else None
