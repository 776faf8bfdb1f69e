# SPDX-License-Identifier: Apache-2.0
"""Reads a trace of any known format into `Arrival`s, row by row, and keeps the books: read = dropped (by reason) + kept."""

from __future__ import annotations

import heapq
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ziggurat.errors import ConfigError, SchemaError, TraceError
from ziggurat.workload.records import Arrival
from ziggurat.workload.traces import json_formats as _json_formats  # noqa: F401  (registers its formats)
from ziggurat.workload.traces.formats import (
    DEFAULT_SETTINGS,
    FAILED,
    TRACE_FORMATS,
    Dated,
    Dropped,
    FormatSettings,
    TraceFormat,
)
from ziggurat.workload.traces.rows import BadRow, header_of, open_text, rows_of

BAD, OTHER_MODEL, OTHER_LOG, OUTSIDE = "bad row", "other model", "other log type", "outside the window"
MAX_SHOWN_ROWS = 10
_PEEK_CHARS = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which requests are wanted; None is no wish.

    Attributes:
        start_s, end_s: half open ``[start_s, end_s)``, in the times of the trace.
    """

    model: str | None = None
    log_type: str | None = None
    start_s: float | None = None
    end_s: float | None = None

    def refusal(self, t_s: float, model: str, log_type: str) -> str | None:
        """Why a request is not wanted; None if it is."""
        if self.model is not None and model != self.model:
            return OTHER_MODEL
        if self.log_type is not None and log_type != self.log_type:
            return OTHER_LOG
        is_early = self.start_s is not None and t_s < self.start_s
        return OUTSIDE if is_early or (self.end_s is not None and t_s >= self.end_s) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadOptions:
    """How a trace is read.

    Attributes:
        source_format: a name of `TRACE_FORMATS`; None looks at the file.
        sort: put the requests in order of time, which takes all of them into memory; without it, disorder is an error.
        skip_bad: count bad rows as dropped instead of ending at the first.
        num_requests: stop after that many.
    """

    source_format: str | None = None
    sort: bool = False
    skip_bad: bool = False
    num_requests: int | None = None
    wanted: Filter = Filter()
    settings: FormatSettings = DEFAULT_SETTINGS


@dataclass(slots=True)
class TraceCounts:
    """The books of one reading. A row is a line, or a conversation; rows_read = rows_kept + sum(dropped), always.

    Attributes:
        bad_rows: numbers of the first bad rows.
        failed_s: times of failed requests.
        requests_unwanted: requests of kept rows that the filter refused (a row may hold several).
    """

    rows_read: int = 0
    rows_kept: int = 0
    num_requests: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    requests_unwanted: Counter[str] = field(default_factory=Counter)
    bad_rows: list[int] = field(default_factory=list)
    failed_s: array[float] = field(default_factory=lambda: array("d"))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "rows_read": self.rows_read,
            "rows_dropped": dict(sorted(self.dropped.items())),
            "rows_kept": self.rows_kept,
            "num_requests": self.num_requests,
            "num_failed": len(self.failed_s),
            "bad_rows": self.bad_rows,
        }

    def as_text(self) -> str:
        """``120 rows read = 3 dropped (2 failed, 1 bad row) + 117 kept``."""
        num_dropped = sum(self.dropped.values())
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(self.dropped.items()))
        text = f"{self.rows_read:,} rows read = {num_dropped:,} dropped{f' ({reasons})' if reasons else ''} + {self.rows_kept:,} kept"
        if self.num_requests != self.rows_kept:
            text += f", which hold {self.num_requests:,} requests"
        if self.bad_rows:
            text += f"; bad rows: {', '.join(map(str, self.bad_rows))}{' ..' if len(self.bad_rows) == MAX_SHOWN_ROWS else ''}"
        return text


class TraceReader:
    """An iterable over a trace's requests in order of time. Can be iterated again; ``counts`` are those of the last iteration.

    Raises:
        SchemaError: the file has not the columns of any format, or of the one that was asked for; names the missing and the found.
        TraceError: it cannot be read.
        ConfigError: no such format.
    """

    def __init__(self, path: Path, options: ReadOptions = ReadOptions()) -> None:
        self.path = path
        self.options = options
        self.counts = TraceCounts()
        self.format_name = detect(path, options.source_format)

    @property
    def has_times(self) -> bool:
        """Whether the times are the trace's own."""
        return self._format().has_times

    def __iter__(self) -> Iterator[Arrival]:
        """Requests in order of time.

        Raises:
            TraceError: a bad row, times out of order, or no request at all; with the row.
        """
        self.counts = TraceCounts()
        found = self._requests()
        if self.options.sort:
            found = iter(sorted(found, key=lambda arrival: arrival.t_s))
        last_s = 0.0
        for arrival in found:
            if arrival.t_s < last_s:
                raise self._disorder(arrival, last_s)
            last_s = arrival.t_s
            self.counts.num_requests += 1
            yield arrival
            if self.counts.num_requests == self.options.num_requests:
                break
        if not self.counts.num_requests:
            raise TraceError(f"the trace {self.path} has no rows that are requests: {self.counts.as_text()}")

    def _format(self) -> TraceFormat:
        return TRACE_FORMATS.get(self.format_name)(self.options.settings)

    def _disorder(self, arrival: Arrival, last_s: float) -> TraceError:
        row = self.counts.rows_read
        hint = "read it with sorting (`--sort`)"
        return TraceError(
            f"the trace is not sorted: row {row} ({arrival.id!r}) comes at {arrival.t_s} s, the row before it at {last_s} s; {hint}",
            row=row,
        )

    def _requests(self) -> Iterator[Arrival]:
        """In order of the file, but for formats without times: their conversations overlap and are merged."""
        rows = self._kept_rows()
        if self.has_times:
            for _, arrivals in rows:
                yield from arrivals
        else:
            yield from _merged(rows)

    def _kept_rows(self) -> Iterator[tuple[float, list[Arrival]]]:
        """(start of the row, what is wanted of it)."""
        parser, counts = self._format(), self.counts
        if self.options.sort and isinstance(parser, Dated):
            for row in self._rows(parser):
                if not isinstance(row, BadRow):
                    parser.look(row)
        for row in self._rows(parser):
            counts.rows_read += 1
            arrivals = self._parse(parser, row)
            wanted = self._wanted(arrivals)
            if wanted:
                counts.rows_kept += 1
                yield arrivals[0].t_s, wanted

    def _rows(self, parser: TraceFormat) -> Iterator[Mapping[str, Any] | BadRow]:
        num_read = 0
        with open_text(self.path) as file:
            shape = "jsonl" if parser.shape == "json" and _is_lines(self.path) else parser.shape
            try:
                for row in rows_of(file, shape):
                    num_read += 1
                    yield row
            except (OSError, EOFError, UnicodeError) as error:
                raise TraceError(f"cannot read the trace {self.path} after row {num_read}: {error}") from error

    def _parse(self, parser: TraceFormat, row: Mapping[str, Any] | BadRow) -> list[Arrival]:
        counts = self.counts
        try:
            if isinstance(row, BadRow):
                raise ValueError(row.problem)
            missing = [name for name in parser.required if name not in row]
            if missing:
                raise ValueError(f"a row needs {', '.join(parser.required)}: {missing[0]} is missing")
            found = parser.parse(row, counts.rows_read)
        except TraceError:
            raise
        except (ValueError, ConfigError) as error:
            is_final = isinstance(row, BadRow) and row.is_final
            if not self.options.skip_bad or is_final:
                hint = "" if is_final else "; bad rows can be left out with `--skip-bad`"
                raise TraceError(f"{self.path}, row {counts.rows_read}: {error}{hint}", row=counts.rows_read) from error
            counts.dropped[BAD] += 1
            if len(counts.bad_rows) < MAX_SHOWN_ROWS:
                counts.bad_rows.append(counts.rows_read)
            return []
        if not isinstance(found, Dropped):
            return found
        refusal = None if found.t_s is None else self.options.wanted.refusal(found.t_s, found.model, found.log_type)
        counts.dropped[refusal or found.reason] += 1
        if found.t_s is not None and found.reason == FAILED and refusal is None:
            counts.failed_s.append(found.t_s)
        return []

    def _wanted(self, arrivals: list[Arrival]) -> list[Arrival]:
        wanted = self.options.wanted
        reasons = [wanted.refusal(arrival.t_s, arrival.model, arrival.log_type) for arrival in arrivals]
        kept = [arrival for arrival, reason in zip(arrivals, reasons, strict=True) if reason is None]
        first = next((reason for reason in reasons if reason is not None), None)
        if not kept and first is not None:
            self.counts.dropped[first] += 1
        elif first is not None:
            self.counts.requests_unwanted.update(reason for reason in reasons if reason is not None)
        return kept


def _merged(rows: Iterator[tuple[float, list[Arrival]]]) -> Iterator[Arrival]:
    """Requests of rows that start in order and overlap, in order of time. A row's start counts even where its first request is not
    wanted: later rows may start before what is left of it."""
    waiting: list[tuple[float, str, Arrival]] = []
    for start_s, arrivals in rows:
        while waiting and waiting[0][0] < start_s:
            yield heapq.heappop(waiting)[2]
        for arrival in arrivals:
            heapq.heappush(waiting, (arrival.t_s, arrival.id, arrival))
    while waiting:
        yield heapq.heappop(waiting)[2]


def _first_char(path: Path) -> str:
    with open_text(path) as file:
        try:
            return file.read(_PEEK_CHARS).lstrip()[:1]
        except (OSError, EOFError, UnicodeError) as error:
            raise TraceError(f"cannot read the trace {path}: {error}") from error


def _is_lines(path: Path) -> bool:
    return _first_char(path) == "{"


def detect(path: Path, name: str | None = None) -> str:
    """The format of a file, from its header or its first object.

    Args:
        name: the format that it is said to be; only checked.

    Raises:
        ConfigError: no such format.
        SchemaError: columns are missing.
        TraceError: the file cannot be read or has no rows.
    """
    wanted = [name] if name is not None else TRACE_FORMATS.names()
    formats = {each: TRACE_FORMATS.get(each)(DEFAULT_SETTINGS) for each in wanted}
    first = _first_char(path)
    if not first:
        raise TraceError(f"the trace {path} has no rows")
    with open_text(path) as file:
        try:
            found = _keys(file, first)
        except (OSError, EOFError, UnicodeError) as error:
            raise TraceError(f"cannot read the trace {path}: {error}") from error
    if found is None:  # damaged: reading tells the row
        json_named = next((each for each in wanted if formats[each].shape != "csv"), None)
        return "mooncake" if name is None else json_named or name
    missing = {each: tuple(key for key in formats[each].required if key not in found) for each in wanted}
    # Of several that fit, the one that reads most of the columns; of none, the one that lacks the smallest share.
    best = min(
        wanted, key=lambda each: (len(missing[each]) / len(formats[each].required), -len(formats[each].required))
    )
    if missing[best]:
        known = "" if name is not None else f" Formats: {', '.join(TRACE_FORMATS.names())}; {best} is the nearest."
        raise SchemaError(
            f"{path}: missing column {', '.join(map(repr, missing[best]))} of the {best} format. "
            f"Columns found: {', '.join(map(repr, found)) or 'none'}.{known}",
            missing=missing[best],
            found=tuple(found),
        )
    return best


def _keys(file: Any, first: str) -> list[str] | None:
    """Columns of a CSV, or keys of the first object; None when that is no JSON."""
    if first not in "[{":
        return header_of(file)
    for row in rows_of(file, "json" if first == "[" else "jsonl"):
        return None if isinstance(row, BadRow) else [str(key) for key in row]
    return []


def read_trace(path: Path, *, num_requests: int | None = None, source_format: str | None = None) -> list[Arrival]:
    """The first ``num_requests`` requests (all if None) of a trace, of any format or of the one that is named.

    Raises:
        TraceError: see `TraceReader`.
    """
    return list(TraceReader(path, ReadOptions(num_requests=num_requests, source_format=source_format)))
