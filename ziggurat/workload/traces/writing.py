# SPDX-License-Identifier: Apache-2.0
"""Writes requests as a trace of a given format, row by row, and counts what the format cannot hold."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO

from ziggurat.errors import ConfigError
from ziggurat.workload.records import Arrival
from ziggurat.workload.traces.formats import DEFAULT_SETTINGS, MAX_SECONDS, TRACE_FORMATS, FormatSettings, TraceFormat

_DETAILS = ("session", "model", "log_type", "elapsed_s", "hash_ids", "prompt_ids", "priority", "tenant")


def columns_of(form: TraceFormat) -> list[str]:
    """Columns of a written CSV, in the order in which `TraceFormat.write` gives them."""
    example = Arrival(t_s=0.0, id="", prompt_len=1, max_new=1)
    return list(form.write(example))


class TraceWriter:
    """Writes requests to an open text file; a CSV gets its header at once.

    Args:
        name: a name of `TRACE_FORMATS`.

    Attributes:
        num_written: rows.
        lost: field of `Arrival` -> requests that had it and whose row does not.

    Raises:
        ConfigError: no such format.
        UnsupportedFeature: the format holds what no request has (text).
    """

    def __init__(self, file: TextIO, name: str, settings: FormatSettings = DEFAULT_SETTINGS) -> None:
        self.num_written = 0
        self.lost: Counter[str] = Counter()
        self._file = file
        self._form = TRACE_FORMATS.get(name)(settings)
        self._lossy = [field for field in _DETAILS if field not in self._form.holds]
        columns = columns_of(self._form)
        self._csv = csv.DictWriter(file, columns, lineterminator="\n") if self._form.shape == "csv" else None
        if self._csv is not None:
            self._csv.writeheader()

    def write(self, arrival: Arrival) -> None:
        """One row.

        Raises:
            ConfigError: it comes later than any format can say.
        """
        if arrival.t_s > MAX_SECONDS:
            raise ConfigError(
                f"{arrival.id} comes at {arrival.t_s:g} s, at most {MAX_SECONDS:g} s can be written; scale less"
            )
        row = self._form.write(arrival)
        for field in self._lossy:
            if getattr(arrival, field) not in (None, "", (), 0) and not self._is_kept(field, row):
                self.lost[field] += 1
        if self._csv is not None:
            self._csv.writerow(row)
        else:
            self._file.write(json.dumps(row, separators=(", ", ": ")) + "\n")
        self.num_written += 1

    def _is_kept(self, field: str, row: dict[str, object]) -> bool:
        """Tokens become hash ids, which keep what is shared; a session does too where it stands for the prompt."""
        return field in ("prompt_ids", "session") and bool(row.get("hash_ids"))


def write_trace(
    path: Path, arrivals: Iterable[Arrival], name: str, settings: FormatSettings = DEFAULT_SETTINGS
) -> TraceWriter:
    """Write a whole trace. A regular file appears when it is complete and not before; an error leaves an old one as it was.

    Raises:
        ConfigError: the file cannot be written.
    """
    is_stream = path.exists() and not path.is_file()
    partial = path if is_stream else path.with_name(f".{path.name}.partial")
    try:
        with partial.open("w", encoding="utf-8", newline="") as file:
            writer = TraceWriter(file, name, settings)
            for arrival in arrivals:
                writer.write(arrival)
        if not is_stream:
            partial.replace(path)
    except OSError as error:
        raise ConfigError(f"cannot write the trace {path}: {error.strerror or error}") from error
    finally:
        if not is_stream:
            partial.unlink(missing_ok=True)
    return writer
