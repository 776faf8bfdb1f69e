# SPDX-License-Identifier: Apache-2.0
"""THE table from the error tree to HTTP, and the one body that every failure has: ``{"error": {message, type, param, code}}``."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from ziggurat import errors

log = logging.getLogger("ziggurat.server")


class BodyTooLarge(errors.RequestError):
    """The request body is over the cap."""

    code = "body_too_large"


class BodyTimeout(errors.RequestError):
    """The client did not send its body in time."""

    code = "body_timeout"


class InvalidApiKey(errors.RequestError):
    """No key, or not one of the server's."""

    code = "invalid_api_key"


class GrammarFailed(errors.RequestError):
    """The language that the request asked for cannot be followed to its end."""

    code = "invalid_grammar"


class PromptTooLong(errors.ContextLengthExceeded):
    """So much longer than the context that counting stopped; ``num_prompt_tokens`` is how far it came."""

    def __str__(self) -> str:
        return f"{super().__str__()} Counting stopped when the limit was passed."


class UnsupportedField(errors.UnsupportedFeature):
    """A request field that is known to the field, but not built here."""

    def __init__(self, message: str, *, feature: str, param: str) -> None:
        super().__init__(message, feature=feature)
        self.param = param


@dataclass(frozen=True, slots=True, kw_only=True)
class HTTPAnswer:
    """Status, type and default code of one class of errors. ``code`` None: the error brings its own."""

    status: int
    type: str
    code: str | None = None


# The most derived class that is listed wins.
TABLE: Mapping[type[errors.ZigguratError], HTTPAnswer] = {
    errors.RequestError: HTTPAnswer(status=400, type="invalid_request_error"),
    errors.ContextLengthExceeded: HTTPAnswer(status=400, type="invalid_request_error"),
    errors.KVCapacityExceeded: HTTPAnswer(status=400, type="invalid_request_error"),
    errors.NotFound: HTTPAnswer(status=404, type="not_found_error"),
    errors.UnknownModel: HTTPAnswer(status=404, type="not_found_error"),
    errors.QueueFull: HTTPAnswer(status=429, type="rate_limit_error"),
    InvalidApiKey: HTTPAnswer(status=401, type="invalid_request_error"),
    BodyTooLarge: HTTPAnswer(status=413, type="invalid_request_error"),
    BodyTimeout: HTTPAnswer(status=408, type="invalid_request_error"),
    errors.UnsupportedFeature: HTTPAnswer(status=501, type="not_implemented_error"),
    errors.DoesNotFit: HTTPAnswer(status=400, type="invalid_request_error", code="does_not_fit"),
    errors.UserError: HTTPAnswer(status=400, type="invalid_request_error", code="invalid_value"),
    errors.Loading: HTTPAnswer(status=503, type="unavailable_error", code="loading"),
    errors.Draining: HTTPAnswer(status=503, type="unavailable_error", code="draining"),
    errors.StateError: HTTPAnswer(status=503, type="unavailable_error", code="unavailable"),
    errors.EngineError: HTTPAnswer(status=500, type="server_error", code="engine_error"),
    errors.ZigguratError: HTTPAnswer(status=500, type="server_error", code="internal_error"),
}
UNEXPECTED = HTTPAnswer(status=500, type="server_error", code="internal_error")
# Numbers that an error carries and its body repeats, so that a program need not read the sentence.
NUMBERS = (
    "max_model_len",
    "num_prompt_tokens",
    "num_output_tokens",
    "needed_bytes",
    "available_bytes",
    "retry_after_s",
)
LOADING_RETRY_S = 2


def answer_for(error: BaseException) -> HTTPAnswer:
    """The row of the table for an error; one that is not ours is a 500."""
    for base in type(error).__mro__:
        if base in TABLE:
            return TABLE[base]
    return UNEXPECTED


def error_object(error: BaseException) -> dict[str, Any]:
    """The ``error`` object of a failure. The text of an error that is not ours stays in the log."""
    answer = answer_for(error)
    if answer is UNEXPECTED:
        log.error("unexpected error", exc_info=error)
        message = "internal error; the server's log has the details"
    else:
        message = str(error)
    code = getattr(error, "feature", None) or answer.code or getattr(error, "code", None)
    body = make_error(message, type=answer.type, param=getattr(error, "param", None), code=code)
    body.update({name: getattr(error, name) for name in NUMBERS if hasattr(error, name)})
    return body


def make_error(message: str, *, type: str, code: str | None, param: str | None = None) -> dict[str, Any]:
    """An ``error`` object."""
    return {"message": message, "type": type, "param": param, "code": code}


def error_response(error: BaseException) -> tuple[int, bytes, dict[str, str]]:
    """Status, JSON body and extra headers of a failure."""
    headers: dict[str, str] = {}
    if isinstance(error, errors.QueueFull):
        headers["retry-after"] = str(max(1, error.retry_after_s))
    elif isinstance(error, errors.Loading):
        headers["retry-after"] = str(LOADING_RETRY_S)
    elif isinstance(error, InvalidApiKey):
        headers["www-authenticate"] = "Bearer"
    elif isinstance(error, BodyTooLarge | BodyTimeout):
        # What is left of the body cannot be told from a next request.
        headers["connection"] = "close"
    return answer_for(error).status, msgspec.json.encode({"error": error_object(error)}), headers
