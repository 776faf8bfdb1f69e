# SPDX-License-Identifier: Apache-2.0
"""A line on standard error that says how far something is; only on a terminal."""

from __future__ import annotations

import sys
import time
from typing import TextIO

from ziggurat.units import format_bytes

_INTERVAL_S = 0.1


class ProgressLine:
    """Call it with (what, bytes done, bytes in total); the line is wiped when all are done."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out or sys.stderr
        self._is_shown = self._out.isatty()
        self._next_s = 0.0

    def __call__(self, what: str, done_bytes: int, total_bytes: int) -> None:
        if not self._is_shown or (time.monotonic() < self._next_s and done_bytes < total_bytes):
            return
        self._next_s = time.monotonic() + _INTERVAL_S
        share = f"{done_bytes / max(total_bytes, 1):4.0%} of {format_bytes(total_bytes)}  {what}"
        self._out.write(f"\r\x1b[K{share[:78]}" if done_bytes < total_bytes else "\r\x1b[K")
        self._out.flush()


def show_steps(num_done: int, num_steps: int, what: str) -> None:
    """``3/8 what`` on standard error if it is a terminal; an empty text wipes the line."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{num_done}/{num_steps} {what}"[:84] if what else "\r\x1b[K")
        sys.stderr.flush()
