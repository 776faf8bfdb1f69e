# SPDX-License-Identifier: Apache-2.0
"""An append-only file of checked lines: what was acknowledged survives ``kill -9`` and a power cut.

A record is one line of bytes without a line break, a space, and the CRC-32 of the bytes as eight hexadecimal digits. `flush` returns when
everything appended is on the disk. Reading stops at the first record that is torn or damaged, and what follows is cut off. Torch-free.
"""

from __future__ import annotations

import fcntl
import os
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from ziggurat.errors import ConfigError

_CHECK_BYTES = 10  # a space, eight digits, a line break


class CheckedLog:
    """One file with one writer, who calls `close`.

    Args:
        path: made if it is not there; its folder must be.

    Attributes:
        num_torn_bytes: what was cut off when it was opened.

    Raises:
        ConfigError: it cannot be written, or another process writes it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = _open_locked(path)
        self._pending: list[bytes] = []
        self._end = 0
        self.num_torn_bytes = 0
        for offset, payload in self.read():
            self._end = offset + len(payload) + _CHECK_BYTES
        size = os.fstat(self._fd).st_size
        if size > self._end:
            self.num_torn_bytes = size - self._end
            os.ftruncate(self._fd, self._end)
            os.fdatasync(self._fd)

    @property
    def end(self) -> int:
        """Where the next record goes, bytes."""
        return self._end

    @property
    def num_pending(self) -> int:
        """Records that are not safe yet."""
        return len(self._pending)

    def read(self, start: int = 0) -> Iterator[tuple[int, bytes]]:
        """(offset, payload) of the good records from an offset on, which must be where a record begins."""
        with os.fdopen(os.dup(self._fd), "rb") as file:
            file.seek(start)
            offset = start
            for raw in file:
                payload = _checked(raw)
                if payload is None:
                    return
                yield offset, payload
                offset += len(raw)

    def read_at(self, offset: int, num_bytes: int) -> bytes:
        """The payload at an offset. It must have been flushed."""
        return os.pread(self._fd, num_bytes, offset)

    def append(self, payload: bytes) -> int:
        """Add a record; it is safe after the next `flush`. Returns its offset."""
        assert b"\n" not in payload, "a record is one line"
        offset = self._end
        raw = _line(payload)
        self._end += len(raw)
        self._pending.append(raw)
        return offset

    def flush(self) -> None:
        """Make every record safe.

        Raises:
            ConfigError: the disk is full or fails. What was flushed before is safe, what was not is forgotten.
        """
        if not self._pending:
            return
        data = b"".join(self._pending)
        start = self._end - len(data)
        self._pending.clear()
        try:
            _write_all(self._fd, data, start)
            os.fdatasync(self._fd)
        except OSError as error:
            self._end = start
            os.ftruncate(self._fd, start)
            raise ConfigError(
                f"cannot write {self.path}: {error.strerror}. What was acknowledged before is safe; make room and try again"
            ) from None

    def rewrite(self, payloads: Iterable[bytes]) -> None:
        """Replace the whole file by these records, at once or not at all.

        Raises:
            ConfigError: the disk is full or fails; the old file stays.
        """
        partial = self.path.with_name(self.path.name + ".part")
        try:
            partial.unlink(missing_ok=True)
            fd = _open_locked(partial)
            end = 0
            for payload in payloads:
                raw = _line(payload)
                _write_all(fd, raw, end)
                end += len(raw)
            os.fsync(fd)
            os.replace(partial, self.path)
            sync_folder(self.path.parent)
        except OSError as error:
            raise ConfigError(f"cannot write {partial}: {error.strerror}; {self.path} is as it was") from None
        os.close(self._fd)
        self._fd, self._end = fd, end

    def close(self) -> None:
        """Flush and let go of the file."""
        try:
            self.flush()
        finally:
            os.close(self._fd)


def sync_folder(folder: Path) -> None:
    """Make names in a folder safe."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _open_locked(path: Path) -> int:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise ConfigError(f"{path} is being written by another process: one writer at a time") from None
    return fd


def _line(payload: bytes) -> bytes:
    return payload + b" %08x\n" % zlib.crc32(payload)


def _checked(raw: bytes) -> bytes | None:
    """A line without its checksum; None if it is torn or damaged."""
    payload = raw[:-_CHECK_BYTES]
    return payload if raw.endswith(b"\n") and raw[-_CHECK_BYTES:] == b" %08x\n" % zlib.crc32(payload) else None


def _write_all(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written
