# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C while libraries are being imported.

A KeyboardInterrupt raised in the middle of an import is swallowed by the import machinery, or caught by a library that then
believes that its optional part is missing; the program goes on, broken. So until a verb says that it is ready for the exception,
Ctrl-C ends the process at once. Nothing is lost: results are written at the end, and the system takes the memory back.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

EXIT_INTERRUPTED = 130


def leave_at_once() -> contextlib.AbstractContextManager[None]:
    """Inside, Ctrl-C prints one line and ends the process."""
    return _handling_with(_leave)


def raise_interrupts() -> contextlib.AbstractContextManager[None]:
    """Inside, Ctrl-C raises KeyboardInterrupt, as Python does."""
    return _handling_with(signal.default_int_handler)


@contextlib.contextmanager
def defer_interrupts() -> Iterator[None]:
    """Inside, Ctrl-C waits; KeyboardInterrupt is raised at the end. For a step of an engine, which must not stop half-way."""
    seen: list[int] = []
    with _handling_with(lambda number, frame: seen.append(number)):
        yield
    if seen:
        raise KeyboardInterrupt


def _leave(number: int, frame: FrameType | None) -> None:
    os.write(2, b"ziggurat: interrupted\n")
    os._exit(EXIT_INTERRUPTED)


@contextlib.contextmanager
def _handling_with(handler: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # signals belong to the main thread
        yield
        return
    before = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        # None: a handler that was not installed from Python, which Python cannot put back.
        if before is not None:
            signal.signal(signal.SIGINT, before)
