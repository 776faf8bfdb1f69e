# SPDX-License-Identifier: Apache-2.0
"""Reads a timed trace: one JSON object a line with ``timestamp`` (ms), ``input_length`` and ``output_length``, as Mooncake's are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ziggurat.errors import ConfigError
from ziggurat.workload.arrivals import check_trace
from ziggurat.workload.records import Arrival


def read_trace(path: Path, *, num_requests: int | None = None) -> list[Arrival]:
    """The first ``num_requests`` rows (all if None). Times count from the first row.

    Raises:
        ConfigError: the file cannot be read, a row is not what it should be, a time is negative or the rows are not in order;
            names the row.
    """
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the trace {path}: {error}") from error
    arrivals = [_arrival(path, row, line) for row, line in enumerate(lines[:num_requests], start=1)]
    if not arrivals:
        raise ConfigError(f"the trace {path} has no rows")
    check_trace(arrivals)
    return arrivals


def _arrival(path: Path, row: int, line: str) -> Arrival:
    try:
        raw: Any = json.loads(line)
        times_ms, prompt_len, max_new = (raw[name] for name in ("timestamp", "input_length", "output_length"))
        return Arrival(t_s=times_ms / 1000, id=f"row-{row}", prompt_len=prompt_len, max_new=max_new)
    except ConfigError as error:
        raise ConfigError(f"{path}, row {row}: {error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path}, row {row}: a row needs the numbers timestamp (ms), input_length and output_length: {error!r}"
        ) from error
