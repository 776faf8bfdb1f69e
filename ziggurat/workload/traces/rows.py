# SPDX-License-Identifier: Apache-2.0
"""Rows of a file, one after another and never the whole file: CSV with a header, JSON lines, or one JSON array."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from ziggurat.errors import TraceError
from ziggurat.workload.traces.formats import Shape

CHUNK_CHARS = 1 << 20
MAX_RECORD_CHARS = 256 << 20
"""Of one element of a JSON array: more is a damaged file, not a conversation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BadRow:
    """A row that cannot even be split into values.

    Attributes:
        is_final: what follows cannot be found.
    """

    problem: str
    is_final: bool = False


def open_text(path: Path) -> TextIO:
    """A text file, or one that was packed with gzip (``.gz``). UTF-8, with or without a mark; the caller closes it.

    Raises:
        TraceError: it cannot be opened.
    """
    try:
        if path.suffix == ".gz":
            return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
        return path.open(encoding="utf-8-sig", newline="")
    except OSError as error:
        raise TraceError(f"cannot read the trace {path}: {error.strerror or error}") from error


def rows_of(file: TextIO, shape: Shape) -> Iterator[Mapping[str, Any] | BadRow]:
    """Every row after the header; empty lines are no rows. OSError and UnicodeError come from the file."""
    if shape == "csv":
        return _csv_rows(file)
    return _json_lines(file) if shape == "jsonl" else _json_array(file)


def header_of(file: TextIO) -> list[str]:
    """Columns of a CSV; reads the first line that is not empty."""
    return next(([name.strip() for name in row] for row in csv.reader(file) if row), [])


def _csv_rows(file: TextIO) -> Iterator[Mapping[str, Any] | BadRow]:
    columns = header_of(file)
    reader = csv.reader(file)
    while True:
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield BadRow(problem=str(error))
            continue
        if len(values) == len(columns):
            yield dict(zip(columns, values, strict=True))
        elif values:
            yield BadRow(problem=f"{len(values)} values for {len(columns)} columns")


def _json_lines(file: TextIO) -> Iterator[Mapping[str, Any] | BadRow]:
    for line in file:
        if line.strip():
            try:
                yield _object(json.loads(line))
            except (ValueError, RecursionError) as error:
                yield BadRow(problem=f"not JSON: {error}")


def _json_array(file: TextIO) -> Iterator[Mapping[str, Any] | BadRow]:
    """Elements of ``[{..}, {..}]`` as soon as each is complete."""
    decode = json.JSONDecoder().raw_decode
    text, place, is_end = "", 0, False
    # What may come next: "[", then "v]" (a value or the end), then ",]" after a value and "v" after a comma.
    expected = "["
    while True:
        while place < len(text) and text[place].isspace():
            place += 1
        char = text[place : place + 1]
        if char and char in "[]," and char in expected:
            if char == "]":
                return
            expected, place = ("v" if char == "," else "v]"), place + 1
            continue
        problem = f"expected one of {expected!r}, found {text[place : place + 20]!r}"
        if char and "v" in expected:
            try:
                value, place = decode(text, place)
            except (ValueError, RecursionError) as error:
                problem = f"not JSON: {error}"
            else:
                yield _object(value)
                expected = ",]"
                continue
        is_hopeless = (char and "v" not in expected) or len(text) - place > MAX_RECORD_CHARS
        if is_end or is_hopeless:
            yield BadRow(problem=problem, is_final=True)
            return
        more = file.read(CHUNK_CHARS)
        is_end = not more
        text, place = text[place:] + more, 0


def _object(value: Any) -> Mapping[str, Any] | BadRow:
    return value if isinstance(value, dict) else BadRow(problem=f"a row must be an object, got {str(value)[:40]!r}")
