# SPDX-License-Identifier: Apache-2.0
"""A file read by several requests at a time, past the page cache where the file system can (O_DIRECT).

A page cache would hold the same bytes a second time, in memory that no lease knows. Where O_DIRECT is refused (tmpfs, some network file
systems) the file is read through the cache and its pages are dropped behind the reader; `is_direct` says which.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from ziggurat.memory.arena import PAGE_BYTES

REQUEST_BYTES = 4 << 20
"""Of one request. Larger ones gain nothing on the drives that were measured, smaller ones lose to the cost of a system call."""
NUM_REQUESTS = 4
"""In flight at once: one leaves a drive idle between requests."""


class ReadRequests:
    """The requests of one `DirectFile.read`; `wait` returns when all bytes are there."""

    def __init__(self, futures: Sequence[Future[None]]) -> None:
        self._futures = futures

    def wait(self) -> None:
        """
        Raises:
            OSError: a request failed; all others have ended, the buffer holds nothing that can be used.
        """
        errors = [error for future in self._futures if (error := future.exception()) is not None]
        if errors:
            raise errors[0]

    @property
    def is_done(self) -> bool:
        """Whether `wait` would return at once."""
        return all(future.done() for future in self._futures)


class DirectFile:
    """An existing file, open for reading. Safe to use from several threads; `close` ends what is in flight.

    Args:
        num_requests: system calls at a time, each on a thread of its own.

    Attributes:
        is_direct: whether reads go past the page cache.
        num_read_bytes: so far.

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(self, path: Path, *, num_requests: int = NUM_REQUESTS, request_bytes: int = REQUEST_BYTES) -> None:
        assert request_bytes % PAGE_BYTES == 0 and num_requests >= 1
        self.path = path
        self._fd, self.is_direct = _open(path)
        self._request_bytes = request_bytes
        self._pool = ThreadPoolExecutor(num_requests, thread_name_prefix="direct-read")
        self._lock = threading.Lock()
        self.num_read_bytes = 0

    def read(self, offset: int, into: memoryview) -> ReadRequests:
        """Start reading ``len(into)`` bytes from ``offset``. Offset, length and the buffer's address are multiples of the page size, and
        the buffer must live until `ReadRequests.wait` has returned."""
        assert offset % PAGE_BYTES == 0 and len(into) % PAGE_BYTES == 0, f"[{offset}, +{len(into)}) is not whole pages"
        step = self._request_bytes
        return ReadRequests(
            [
                self._pool.submit(self._read, offset + start, into[start : start + step])
                for start in range(0, len(into), step)
            ]
        )

    def close(self) -> None:
        """Wait for what is in flight, then close."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _read(self, offset: int, into: memoryview) -> None:
        done = 0
        while done < len(into):
            count = os.preadv(self._fd, [into[done:]], offset + done)
            if count == 0:
                raise OSError(f"{self.path} ends at byte {offset + done}, {len(into) - done} bytes are missing")
            done += count
        if not self.is_direct:
            os.posix_fadvise(self._fd, offset, len(into), os.POSIX_FADV_DONTNEED)
        with self._lock:
            self.num_read_bytes += len(into)


def _open(path: Path) -> tuple[int, bool]:
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC), True
    except OSError as error:
        if isinstance(error, FileNotFoundError | PermissionError):
            raise
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC), False
