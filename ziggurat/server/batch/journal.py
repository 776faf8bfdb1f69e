# SPDX-License-Identifier: Apache-2.0
"""What a batch has finished, kept beside its output until all is done: a killed job goes on where it was.

The journal is a checked log of JSON: a header that says which job this is, then one record per finished line of the input, in the order in
which they ended. The output file appears whole, in input order, by one rename.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from ziggurat.durable import CheckedLog, sync_folder
from ziggurat.errors import ConfigError

SUFFIX = ".journal"
VERSION = 1


class Journal:
    """Records of one job. Its owner calls `close`.

    Args:
        path: of the journal; made if it is not there.
        header: what must be the same when the job goes on; plain data.

    Raises:
        ConfigError: it cannot be written; or it belongs to another job, and the message says what differs.
    """

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        self._log = CheckedLog(path)
        self._places: dict[int, tuple[int, int]] = {}
        self._checks: dict[int, int] = {}
        try:
            self._read({"version": VERSION, **header})
        except BaseException:
            self._log.close()
            raise

    @property
    def done(self) -> frozenset[int]:
        """Numbers of the input's lines that have a record, from 0."""
        return frozenset(self._places)

    def checks(self) -> Mapping[int, int]:
        """Number -> checksum of the prompts that its record was made from."""
        return self._checks

    @property
    def num_pending(self) -> int:
        """Records that are not safe yet."""
        return self._log.num_pending

    def append(self, index: int, prompts_check: int, record: Mapping[str, Any]) -> None:
        """Add a record; it is safe after the next `flush`."""
        text = msgspec.json.encode([index, prompts_check, record])
        self._places[index] = (self._log.append(text), len(text))
        self._checks[index] = prompts_check

    def flush(self) -> None:
        """Make every record safe.

        Raises:
            ConfigError: the disk is full or fails; what was flushed before is safe.
        """
        self._log.flush()

    def finish(self, output: Path, num_lines: int) -> None:
        """Write the output in input order and remove the journal.

        Raises:
            ConfigError: it cannot be written; the journal stays.
        """
        self.flush()
        partial = output.with_name(output.name + ".part")
        try:
            with partial.open("wb") as file:
                for record in self._records(num_lines):
                    file.write(record + b"\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, output)
            sync_folder(output.parent)
            os.unlink(self._log.path)
        except OSError as error:
            raise ConfigError(f"cannot write {output}: {error.strerror}; everything is in {self._log.path}") from None

    def close(self) -> None:
        """Flush and let go of the file."""
        self._log.close()

    def _records(self, num_lines: int) -> Iterator[bytes]:
        for index in range(num_lines):
            raw = self._log.read_at(*self._places[index])
            yield bytes(msgspec.json.decode(raw, type=tuple[int, int, msgspec.Raw])[2])

    def _read(self, header: Mapping[str, Any]) -> None:
        """Take over what is there."""
        records = self._log.read()
        first = next(records, None)
        if first is None:
            self._log.append(msgspec.json.encode(header))
            self._log.flush()
            sync_folder(self._log.path.parent)
            return
        _compare(self._log.path, msgspec.json.decode(first[1]), header)
        for offset, payload in records:
            index, check, _ = msgspec.json.decode(payload, type=tuple[int, int, msgspec.Raw])
            self._places[index] = (offset, len(payload))
            self._checks[index] = check


def _compare(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    for name, value in wanted.items():
        if found.get(name) != value:
            raise ConfigError(
                f"{path} belongs to another job: its {name} is {found.get(name)!r}, now it is {value!r}. Run the command of that job "
                "to go on with it, or give --overwrite to start anew"
            )
