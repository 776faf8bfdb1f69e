# SPDX-License-Identifier: Apache-2.0
"""The error tree. The server maps each class to one HTTP answer in one table; nothing else does.

::

    ZigguratError
      UserError                     somebody asked for something that cannot be had as asked
        ConfigError                 a flag, a file or an argument is wrong
          TraceError                a trace file cannot be used as it is; carries ``row``
            SchemaError             it lacks a column; carries ``missing`` and ``found``
          TransformAlreadyApplied   weights hold such a rewrite already
        ModelError                  a checkpoint cannot be read as it is
          UnknownArchitecture       no Program is registered for it
          ModelNotFound             no such folder, file or cached repository
        DoesNotFit                  the budget is too small; names the smallest change that would do
        RequestError                one request is wrong; carries ``param`` and ``code``
          ContextLengthExceeded     prompt and output exceed the model's or the engine's limit
          KVCapacityExceeded        the request could never fit the KV pool
          NotFound                  what the request names is not there
          UnknownModel              no such served name
          QueueFull                 the waiting queue is at its bound; retry later
        UnsupportedFeature          known, but not built; named, never ignored
      StateError                    right request, wrong moment
        Loading
        Draining
      InternalError                 our own fault
        EngineError                 a step failed; running requests are ended as failed
"""

from __future__ import annotations


class ZigguratError(Exception):
    """Base of every error that Ziggurat raises on purpose."""


class UserError(ZigguratError):
    """The caller can mend this; the message says how."""


class ConfigError(UserError):
    """A flag, configuration value or argument is not valid."""


class TraceError(ConfigError):
    """A trace file cannot be used as it is: a bad row, times out of order, no rows.

    Attributes:
        row: the row at fault, counted from 1 without the header; None where the file as a whole is.
    """

    def __init__(self, message: str, *, row: int | None = None) -> None:
        super().__init__(message)
        self.row = row


class SchemaError(TraceError):
    """A trace file has not the columns of its format.

    Attributes:
        missing: columns that the format needs.
        found: columns of the file.
    """

    def __init__(self, message: str, *, missing: tuple[str, ...], found: tuple[str, ...]) -> None:
        super().__init__(message)
        self.missing = missing
        self.found = found


class TransformAlreadyApplied(ConfigError):
    """The weights hold a transform of that name already: applying it again would not do what was asked."""


class ModelError(UserError):
    """A checkpoint is damaged, contradictory or not of a supported kind."""


class UnknownArchitecture(ModelError):
    """The checkpoint's architecture has no Program."""


class ModelNotFound(ModelError):
    """The model argument names no folder and no cached repository."""


class DoesNotFit(UserError):
    """The budget cannot hold what was asked.

    Attributes:
        needed_bytes: what the smallest working plan needs.
        available_bytes: what the budget leaves.
    """

    def __init__(self, message: str, *, needed_bytes: int, available_bytes: int) -> None:
        super().__init__(message)
        self.needed_bytes = needed_bytes
        self.available_bytes = available_bytes


class RequestError(UserError):
    """One request is invalid.

    Attributes:
        param: the request field at fault, or None.
        code: machine-readable reason (OpenAI's ``error.code``).
    """

    code = "invalid_value"

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        if code is not None:
            self.code = code


class ContextLengthExceeded(RequestError):
    """Prompt plus requested output is longer than the context limit."""

    code = "context_length_exceeded"

    def __init__(self, *, max_model_len: int, num_prompt_tokens: int, num_output_tokens: int, param: str) -> None:
        total = num_prompt_tokens + num_output_tokens
        super().__init__(
            f"This model's maximum context length is {max_model_len} tokens. However, you requested {total} tokens "
            f"({num_prompt_tokens} in the messages, {num_output_tokens} in the completion). "
            f"Please reduce the length of the messages or completion.",
            param=param,
        )
        self.max_model_len = max_model_len
        self.num_prompt_tokens = num_prompt_tokens
        self.num_output_tokens = num_output_tokens


class KVCapacityExceeded(RequestError):
    """The request needs more KV cache than the whole pool has."""

    code = "kv_capacity_exceeded"

    def __init__(self, message: str, *, needed_bytes: int, available_bytes: int) -> None:
        super().__init__(message)
        self.needed_bytes = needed_bytes
        self.available_bytes = available_bytes


class NotFound(RequestError):
    """What the request names is not there."""

    code = "not_found"


class UnknownModel(RequestError):
    """The request's ``model`` is not served here."""

    code = "model_not_found"


class QueueFull(RequestError):
    """The waiting queue is at its bound.

    Attributes:
        retry_after_s: when to try again, seconds.
    """

    code = "queue_full"

    def __init__(self, message: str, *, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class UnsupportedFeature(UserError):
    """A known feature that is not built here.

    Attributes:
        feature: its name.
    """

    def __init__(self, message: str, *, feature: str) -> None:
        super().__init__(message)
        self.feature = feature


class StateError(ZigguratError):
    """The request is fine; the moment is not."""


class Loading(StateError):
    """The model is still being loaded."""


class Draining(StateError):
    """The server is shutting down and takes no new work."""


class InternalError(ZigguratError):
    """A fault of Ziggurat itself."""


class EngineError(InternalError):
    """A step failed; what was running has been ended as failed."""
