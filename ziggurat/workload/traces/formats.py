# SPDX-License-Identifier: Apache-2.0
"""One class per trace format. It turns one row into an `Arrival` or says why not; files, order and counts are the reader's business.

A new format is a class here (or in a file beside it) with ``@TRACE_FORMATS.register``; detection, flags and error texts follow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from ziggurat.errors import TraceError, UnsupportedFeature
from ziggurat.registry import Registry
from ziggurat.workload.records import Arrival

Shape = Literal["csv", "jsonl", "json"]
Encode = Callable[[str], Sequence[int]]
MAX_TOKENS, MAX_SECONDS = 10**9, 1e11
"""Of one row: more is a damaged file. Three thousand years are still before the last date that a computer writes."""
NO_PROMPT, NO_OUTPUT, FAILED = "no prompt tokens", "no output tokens", "failed (no response tokens)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropped:
    """A row that is well formed and is no request.

    Attributes:
        reason: what the count is kept under.
        t_s, model, log_type: of a failed request, which models of arrivals want to know.
    """

    reason: str
    t_s: float | None = None
    model: str = ""
    log_type: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FormatSettings:
    """What a format cannot know from the file.

    Attributes:
        hash_block_tokens: tokens per entry of ``hash_ids``.
        encode: text to token ids, for formats that hold text; None estimates four bytes of UTF-8 per token.
        conversation_gap_s: between the starts of two conversations, for formats without times.
        turn_gap_s: between two questions of one conversation, likewise.
    """

    hash_block_tokens: int = 512
    encode: Encode | None = None
    conversation_gap_s: float = 1.0
    turn_gap_s: float = 60.0


DEFAULT_SETTINGS = FormatSettings()


class TraceFormat(Protocol):
    """How one format writes a request. One object reads or writes one file; it may remember what earlier rows said.

    Attributes:
        shape: a CSV with a header, one JSON object per line, or one JSON array of objects.
        required: columns or keys that every row has.
        optional: columns that are read when they are there, in the order of writing after the required ones.
        holds: fields of `Arrival` that a written file keeps beside times and lengths.
        has_times: rows say when they came; if not, the reader assigns times.
    """

    shape: ClassVar[Shape]
    required: ClassVar[tuple[str, ...]]
    optional: ClassVar[tuple[str, ...]]
    holds: ClassVar[tuple[str, ...]]
    has_times: ClassVar[bool]

    def parse(self, row: Mapping[str, Any], number: int) -> list[Arrival] | Dropped:
        """The requests of a row, in order of time.

        Raises:
            ValueError, ConfigError: a value is not what it should be.
            TraceError: the row is fine and the file is not: out of order.
        """
        ...

    def write(self, arrival: Arrival) -> dict[str, Any]:
        """A row of the format.

        Raises:
            UnsupportedFeature: the format needs what an arrival does not have.
        """
        ...


@runtime_checkable
class Dated(Protocol):
    """A format whose times are dates, read as seconds after the first. A file out of order has its first date anywhere, so before it
    is sorted every row is shown to `look`."""

    def look(self, row: Mapping[str, Any]) -> None:
        """Take note of a date; what is none is `TraceFormat.parse`'s to refuse."""
        ...


TRACE_FORMATS: Registry[Callable[[FormatSettings], TraceFormat]] = Registry("trace format")


def count_of(row: Mapping[str, Any], column: str) -> int:
    """A number of tokens: whole and not negative.

    Raises:
        ValueError: it is not; names the column.
    """
    raw = row[column]
    try:
        value = float(raw)
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if isinstance(raw, bool) or not (0 <= value <= MAX_TOKENS and value.is_integer()):
        raise ValueError(f"{column} must be a whole number of at least 0 and at most {MAX_TOKENS:,}, got {raw!r}")
    return int(value)


def seconds_of(row: Mapping[str, Any], column: str, *, factor: float = 1.0) -> float:
    """A time or a duration in seconds; ``factor`` is the column's unit.

    Raises:
        ValueError: no number, negative or not finite; names the column.
    """
    raw = row[column]
    try:
        value = float(raw)
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if isinstance(raw, bool) or not 0 <= value * factor <= MAX_SECONDS:
        raise ValueError(f"{column} must be a number of at least 0 and at most {MAX_SECONDS / factor:g}, got {raw!r}")
    return value * factor


def number(value: float) -> float | int:
    """Without ``.0`` where it is whole, so that written files look like their sources."""
    return int(value) if float(value).is_integer() else value


@TRACE_FORMATS.register("burstgpt")
class BurstGPT:
    """BurstGPT (arXiv 2401.17644): seconds from 0:00 of the first day, local time. A row with 0 response tokens is a failed call.

    ``Session ID`` is empty for API rows and absent, like ``Elapsed time``, in old files. ``Total tokens`` is not used.
    """

    shape: ClassVar[Shape] = "csv"
    required: ClassVar[tuple[str, ...]] = ("Timestamp", "Model", "Request tokens", "Response tokens", "Log Type")
    optional: ClassVar[tuple[str, ...]] = ("Session ID", "Elapsed time", "Total tokens")
    holds: ClassVar[tuple[str, ...]] = ("session", "model", "log_type", "elapsed_s")
    has_times: ClassVar[bool] = True

    def __init__(self, settings: FormatSettings) -> None:
        pass

    def parse(self, row: Mapping[str, Any], number: int) -> list[Arrival] | Dropped:
        """See `TraceFormat.parse`."""
        t_s = seconds_of(row, "Timestamp")
        prompt, output = count_of(row, "Request tokens"), count_of(row, "Response tokens")
        if not output:
            return Dropped(reason=FAILED, t_s=t_s, model=row["Model"], log_type=row["Log Type"])
        if not prompt:
            return Dropped(reason=NO_PROMPT)
        arrival = Arrival(
            t_s=t_s,
            id=f"row-{number}",
            prompt_len=prompt,
            max_new=output,
            session=row.get("Session ID") or None,
            model=row["Model"],
            log_type=row["Log Type"],
            elapsed_s=seconds_of(row, "Elapsed time") if row.get("Elapsed time") else None,
        )
        return [arrival]

    def write(self, arrival: Arrival) -> dict[str, Any]:
        """See `TraceFormat.write`."""
        return {
            "Timestamp": number(round(arrival.t_s, 6)),
            "Session ID": arrival.session or "",
            "Elapsed time": "" if arrival.elapsed_s is None else number(arrival.elapsed_s),
            "Model": arrival.model,
            "Request tokens": arrival.prompt_len,
            "Response tokens": arrival.max_new,
            "Total tokens": arrival.prompt_len + arrival.max_new,
            "Log Type": arrival.log_type,
        }


@TRACE_FORMATS.register("azure")
class Azure:
    """Azure's public LLM inference traces of 2023 and 2024: dates, read as seconds after the first one. No prefix information."""

    shape: ClassVar[Shape] = "csv"
    required: ClassVar[tuple[str, ...]] = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
    optional: ClassVar[tuple[str, ...]] = ()
    holds: ClassVar[tuple[str, ...]] = ()
    has_times: ClassVar[bool] = True
    EPOCH: ClassVar[datetime] = datetime(1970, 1, 1, tzinfo=UTC)

    def __init__(self, settings: FormatSettings) -> None:
        self._start: datetime | None = None

    def look(self, row: Mapping[str, Any]) -> None:
        """See `Dated.look`."""
        moment = _moment(row)
        if moment is not None:
            self._start = moment if self._start is None else min(self._start, moment)

    def parse(self, row: Mapping[str, Any], number: int) -> list[Arrival] | Dropped:
        """See `TraceFormat.parse`. Fractions below a microsecond are cut off."""
        moment = _moment(row)
        if moment is None:
            raise ValueError(f"TIMESTAMP must be a date like 2023-11-16 18:15:46.68, got {row['TIMESTAMP']!r}")
        self._start = self._start or moment
        t_s = (moment - self._start).total_seconds()
        if t_s < 0:
            raise TraceError(
                f"the trace is not sorted: row {number} comes {-t_s} s before the first one; read it with sorting (`--sort`)",
                row=number,
            )
        prompt, output = count_of(row, "ContextTokens"), count_of(row, "GeneratedTokens")
        if not prompt or not output:
            return Dropped(reason=NO_OUTPUT if prompt else NO_PROMPT)
        return [Arrival(t_s=t_s, id=f"row-{number}", prompt_len=prompt, max_new=output)]

    def write(self, arrival: Arrival) -> dict[str, Any]:
        """See `TraceFormat.write`. Time 0 is the first of January 1970."""
        moment = self.EPOCH + timedelta(seconds=arrival.t_s)
        return {
            "TIMESTAMP": moment.strftime("%Y-%m-%d %H:%M:%S.%f"),
            "ContextTokens": arrival.prompt_len,
            "GeneratedTokens": arrival.max_new,
        }


def _moment(row: Mapping[str, Any]) -> datetime | None:
    try:
        moment = datetime.fromisoformat(row["TIMESTAMP"])
    except (KeyError, TypeError, ValueError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


@TRACE_FORMATS.register("vidur")
class Vidur:
    """The request traces of Vidur, a simulator of serving (arXiv 2405.05465)."""

    shape: ClassVar[Shape] = "csv"
    required: ClassVar[tuple[str, ...]] = ("arrived_at", "num_prefill_tokens", "num_decode_tokens")
    optional: ClassVar[tuple[str, ...]] = ()
    holds: ClassVar[tuple[str, ...]] = ()
    has_times: ClassVar[bool] = True

    def __init__(self, settings: FormatSettings) -> None:
        pass

    def parse(self, row: Mapping[str, Any], number: int) -> list[Arrival] | Dropped:
        """See `TraceFormat.parse`."""
        t_s = seconds_of(row, "arrived_at")
        prompt, output = count_of(row, "num_prefill_tokens"), count_of(row, "num_decode_tokens")
        if not prompt or not output:
            return Dropped(reason=NO_OUTPUT if prompt else NO_PROMPT)
        return [Arrival(t_s=t_s, id=f"row-{number}", prompt_len=prompt, max_new=output)]

    def write(self, arrival: Arrival) -> dict[str, Any]:
        """See `TraceFormat.write`."""
        return {
            "arrived_at": number(round(arrival.t_s, 9)),
            "num_prefill_tokens": arrival.prompt_len,
            "num_decode_tokens": arrival.max_new,
        }


def refuse_to_write(name: str, what: str) -> UnsupportedFeature:
    """The error of a format that can only be read."""
    return UnsupportedFeature(
        f"{name} files hold {what}, which a trace of lengths does not have", feature=f"trace:{name}"
    )
