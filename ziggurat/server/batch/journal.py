# SPDX-License-Identifier: Apache-2.0
"""What a batch has finished, kept beside its output until all is done: a killed job goes on where it was.

The journal is JSON lines: a header that says which job this is, then one record per finished line of the input, in the order in which
they ended. Each line ends with its checksum. What `flush` has returned from survives ``kill -9`` and a power cut; a torn last line is cut
off. The output file appears whole, in input order, by one rename.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from ziggurat.errors import ConfigError

SUFFIX = ".journal"
VERSION = 1
_CHECKSUM_BYTES = 9  # a space and eight hexadecimal digits


class Journal:
    """Records of one job. Its owner calls `close`.

    Args:
        path: of the journal; made if it is not there.
        header: what must be the same when the job goes on; plain data.

    Raises:
        ConfigError: it cannot be written; or it belongs to another job, and the message says what differs.
    """

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise ConfigError(
                f"cannot write {path}: {error.strerror}; choose an output in a folder that can be written"
            ) from None
        try:
            self.num_torn_bytes = 0
            self._places: dict[int, tuple[int, int]] = {}
            self._checks: dict[int, int] = {}
            self._end = self._read({"version": VERSION, **header})
        except BaseException:
            os.close(self._fd)
            raise
        self._pending: list[bytes] = []

    @property
    def done(self) -> frozenset[int]:
        """Numbers of the input's lines that have a record, from 0."""
        return frozenset(self._places)

    def checks(self) -> Mapping[int, int]:
        """Number -> checksum of the prompts that its record was made from."""
        return self._checks

    def append(self, index: int, prompts_check: int, record: Mapping[str, Any]) -> None:
        """Add a record; it is safe after the next `flush`."""
        text = msgspec.json.encode([index, prompts_check, record])
        raw = text + b" %08x\n" % zlib.crc32(text)
        self._places[index] = (self._end, len(text))
        self._checks[index] = prompts_check
        self._end += len(raw)
        self._pending.append(raw)

    @property
    def num_pending(self) -> int:
        """Records that are not safe yet."""
        return len(self._pending)

    def flush(self) -> None:
        """Make every record safe.

        Raises:
            ConfigError: the disk is full or fails; what was flushed before is safe.
        """
        if not self._pending:
            return
        data = memoryview(b"".join(self._pending))
        offset = self._end - len(data)
        try:
            while data:
                written = os.pwrite(self._fd, data, offset)
                data, offset = data[written:], offset + written
            os.fdatasync(self._fd)
        except OSError as error:
            raise ConfigError(
                f"cannot write {self.path}: {error.strerror}; make room and run the same command again: it goes on from here"
            ) from None
        self._pending.clear()

    def finish(self, output: Path, custom_ids: Sequence[str]) -> None:
        """Write the output in input order and remove the journal.

        Raises:
            ConfigError: it cannot be written; the journal stays.
        """
        self.flush()
        partial = output.with_name(output.name + ".part")
        try:
            with partial.open("wb") as file:
                for record in self._records(len(custom_ids)):
                    file.write(record + b"\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, output)
            _sync_folder(output.parent)
            os.unlink(self.path)
        except OSError as error:
            raise ConfigError(f"cannot write {output}: {error.strerror}; everything is in {self.path}") from None

    def close(self) -> None:
        """Flush and let go of the file."""
        try:
            self.flush()
        finally:
            os.close(self._fd)

    def _records(self, num_lines: int) -> Iterator[bytes]:
        for index in range(num_lines):
            offset, num_bytes = self._places[index]
            _, _, record = msgspec.json.decode(os.pread(self._fd, num_bytes, offset), type=tuple[int, int, msgspec.Raw])
            yield bytes(record)

    def _read(self, header: Mapping[str, Any]) -> int:
        """Take over what is there; returns where the next record goes."""
        with os.fdopen(os.dup(self._fd), "rb") as file:
            file.seek(0)
            good = 0
            for raw in file:
                text = _checked_text(raw)
                if text is None:
                    break
                if good == 0:
                    _compare(self.path, msgspec.json.decode(text), header)
                else:
                    index, check, _ = msgspec.json.decode(text, type=tuple[int, int, msgspec.Raw])
                    self._places[index] = (good, len(text))
                    self._checks[index] = check
                good += len(raw)
            self.num_torn_bytes = os.fstat(self._fd).st_size - good
        os.ftruncate(self._fd, good)
        if good == 0:
            text = msgspec.json.encode(header)
            raw = text + b" %08x\n" % zlib.crc32(text)
            os.pwrite(self._fd, raw, 0)
            good = len(raw)
        os.fdatasync(self._fd)
        _sync_folder(self.path.parent)
        return good


def _checked_text(raw: bytes) -> bytes | None:
    """A line without its checksum; None if it is torn or damaged."""
    text, check = raw[: -_CHECKSUM_BYTES - 1], raw[-_CHECKSUM_BYTES - 1 :]
    return text if raw.endswith(b"\n") and check == b" %08x\n" % zlib.crc32(text) else None


def _compare(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    for name, value in wanted.items():
        if found.get(name) != value:
            raise ConfigError(
                f"{path} belongs to another job: its {name} is {found.get(name)!r}, now it is {value!r}. Run the command of that job "
                "to go on with it, or give --overwrite to start anew"
            )


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
