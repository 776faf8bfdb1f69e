# SPDX-License-Identifier: Apache-2.0
"""OpenAI's batch file: one request per line, ``{"custom_id", "method", "url", "body"}``.

The file as a whole is refused where a line cannot be told apart or answered under its id; what is wrong with one body is answered on its
own line of the output. Bodies stay in the file and are read again when their turn comes, so that a job's size is not bound by memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from ziggurat.errors import ConfigError

MAX_SHOWN = 100
FIELDS = ("custom_id", "method", "url", "body")


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLine:
    """Where a request is. ``number`` counts lines from 1; offsets are bytes in the file."""

    number: int
    custom_id: str
    url: str
    offset: int
    num_bytes: int


class _Line(msgspec.Struct):
    custom_id: str
    method: str
    url: str
    body: msgspec.Raw


class BatchFile:
    """An input file, checked as a whole.

    Raises:
        ConfigError: it cannot be read, is empty, or a line is not a request; the message has the line's number.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        digest = hashlib.blake2b(digest_size=16)
        try:
            with path.open("rb") as file:
                self.lines = tuple(_checked(file_lines(file, digest), path))
            self.created_unix_s = int(path.stat().st_mtime)
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror or error}") from None
        if not self.lines:
            raise ConfigError(
                f"{path} has no request; a batch file has one JSON object per line (docs/commands/batch.md)"
            )
        self.digest = digest.hexdigest()
        """Of all bytes: two files with the same digest are the same job."""

    def body(self, line: BatchLine) -> bytes:
        """The body's JSON text."""
        with self.path.open("rb") as file:
            file.seek(line.offset)
            raw = file.read(line.num_bytes)
        return bytes(msgspec.json.decode(raw, type=_Line).body)


def file_lines(file: Any, digest: Any) -> Iterator[tuple[int, int, bytes]]:
    """(number, offset, bytes) of every line that is not blank; the digest takes all bytes."""
    offset = 0
    for number, raw in enumerate(file, 1):
        digest.update(raw)
        if raw.strip():
            yield number, offset, raw
        offset += len(raw)


def _checked(lines: Iterator[tuple[int, int, bytes]], path: Path) -> Iterator[BatchLine]:
    seen: dict[str, int] = {}
    for number, offset, raw in lines:
        where = f"{path}, line {number}"
        try:
            line = msgspec.json.decode(raw, type=_Line)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            raise ConfigError(f"{where}: {_reason(raw, error)}; nothing was run") from None
        if line.method != "POST":
            raise ConfigError(f"{where}: method must be 'POST', got {line.method[:MAX_SHOWN]!r}; nothing was run")
        if line.custom_id in seen:
            shown = line.custom_id[:MAX_SHOWN]
            raise ConfigError(
                f"{where}: custom_id {shown!r} is on line {seen[line.custom_id]} already; ids must differ; nothing was run"
            )
        seen[line.custom_id] = number
        yield BatchLine(number=number, custom_id=line.custom_id, url=line.url, offset=offset, num_bytes=len(raw))


def _reason(raw: bytes, error: Exception) -> str:
    """What is missing, or why it is not JSON."""
    try:
        found = msgspec.json.decode(raw)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return f"not valid JSON: {error}"
    if not isinstance(found, dict):
        return f"a request must be a JSON object, got {type(found).__name__}"
    missing = [name for name in FIELDS if name not in found]
    return f"the field {missing[0]!r} is required" if missing else str(error)
