# SPDX-License-Identifier: Apache-2.0
"""The log of a server that is a program of its own, as text or as JSON lines. Libraries must not decide where a log goes, so only the
command line calls `log_to_stderr`.

A line has a moment, a level, an event (a short name for programs), a sentence for people and, while a request is served, its id.
What users wrote is never in it.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("text", "json")
# uvicorn and asyncio report faults of their own.
LOGGERS = ("ziggurat", "uvicorn", "asyncio")
REQUEST_ID: ContextVar[str | None] = ContextVar("ziggurat_request_id", default=None)
"""The id of the HTTP request that this task serves."""

Announce = Callable[[str, str, Mapping[str, Any]], None]
"""Gets (event, sentence, fields) of the server's life: listening, ready, closed."""

log = logging.getLogger("ziggurat.server")


def log_event(event: str, text: str, fields: Mapping[str, Any], level: int = logging.INFO) -> None:
    """Log a sentence; JSON lines have the event's name and the fields too."""
    log.log(level, "%s", text, extra={"event": event, "fields": fields})


def print_event(event: str, text: str, fields: Mapping[str, Any]) -> None:
    """The sentence alone, on standard output."""
    print(text, flush=True)


def announcer(log_format: str) -> Announce:
    """Where the lines of the server's life go: standard output for people, the log for programs."""
    return log_event if log_format == "json" else print_event


def log_to_stderr(log_format: str = "text", level: str = "info") -> None:
    """Send the log to standard error. Twice is as good as once."""
    for name in LOGGERS:
        logger = logging.getLogger(name)
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(JSONLines() if log_format == "json" else TextLines())
        logger.setLevel(level.upper() if name == "ziggurat" else logging.ERROR)
        logger.propagate = False
        logger.handlers[:] = [handler]


class TextLines(logging.Formatter):
    """Time, level if it is a bad one, sentence, and the id of the request if there is one."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(message)s", datefmt="%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """One line."""
        level = f"{record.levelname}: " if record.levelno >= logging.WARNING else ""
        request_id = _request_id(record)
        end = f" [request {request_id}]" if request_id else ""
        return f"{record.asctime} {level}{record.message}{end}"


class JSONLines(logging.Formatter):
    """One object per line: ``ts`` (UTC, ISO 8601), ``level``, ``event``, ``message``, ``request_id`` if any, and the event's fields."""

    def format(self, record: logging.LogRecord) -> str:
        """One line without line breaks inside."""
        data: dict[str, Any] = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": getattr(record, "event", "log"),
            "message": record.getMessage(),
        }
        request_id = _request_id(record)
        if request_id:
            data["request_id"] = request_id
        data |= getattr(record, "fields", {})
        if record.exc_info:
            data["traceback"] = self.formatException(record.exc_info)
        return json.dumps(data, ensure_ascii=False, default=str)


def _request_id(record: logging.LogRecord) -> str | None:
    fields: Mapping[str, Any] = getattr(record, "fields", {})
    return fields.get("request_id") or REQUEST_ID.get()
