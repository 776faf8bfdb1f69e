# SPDX-License-Identifier: Apache-2.0
"""The log of a store and the index that follows it: every change is a record, written first to the log and then to the index.

The log is the truth. The index says how far it has followed; what is missing is applied when the store is opened, and an index that is not
there, is of another version or follows another log is made again.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from ziggurat.durable import CheckedLog, sync_folder
from ziggurat.errors import ConfigError
from ziggurat.recall.cube import FOREVER_S, text_hash
from ziggurat.recall.index import SCHEMA_VERSION, Index

_LOG = logging.getLogger(__name__)
FORMAT_VERSION = 1
LOG, INDEX = "memories.log", "index.sqlite"


class Records:
    """One folder's log and index. One process writes. Its owner calls `close`.

    Raises:
        ConfigError: another process writes it, it cannot be written, or it is from a newer version.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"cannot make {folder}: {error.strerror}") from None
        self._log = CheckedLog(folder / LOG)
        self.num_torn_bytes = self._log.num_torn_bytes
        try:
            self._header = self._read_header()
            self.index = self._open_index()
        except BaseException:
            self._log.close()
            raise

    @property
    def log_bytes(self) -> int:
        """Length of the log."""
        return self._log.end

    def commit(self, records: Sequence[dict[str, Any]]) -> None:
        """To the log, safely, and then to the index, all or nothing. A crash in between is made good when the store is opened.

        Raises:
            ConfigError: the disk is full.
        """
        if not records:
            return
        for record in records:
            self._log.append(msgspec.json.encode(record))
        self._log.flush()
        with self.index.change():
            for record in records:
                self._apply(self.index, record)
            self._index_is_at_end(self.index)

    def erase(self, memory_id: str, now_s: float) -> int:
        """Write the log anew without the memory's records, then take it out of the index. What stays is a note with its id and the time.

        Returns the records that went.
        """
        num_records = 0
        stale = self.index.descendants(memory_id)

        def kept() -> Iterator[bytes]:
            nonlocal num_records
            for _, payload in self._log.read():
                record = msgspec.json.decode(payload)
                if record["op"] == "store":
                    # An index that followed the old log must not take itself for one of this log.
                    payload = msgspec.json.encode({**record, "generation": record["generation"] + 1})
                elif record["id"] == memory_id:
                    num_records += 1
                    continue
                elif memory_id in record.get("sources", ()):
                    record["sources"] = [each for each in record["sources"] if each != memory_id]
                    payload = msgspec.json.encode(record)
                yield payload
            yield msgspec.json.encode({"op": "erased", "id": memory_id, "at": now_s, "stale": stale})

        self._log.rewrite(kept())
        self._header = self._read_header()
        with self.index.change():
            self.index.erase(memory_id)
            self._index_is_at_end(self.index)
        self.index.vacuum()
        return num_records

    def close(self) -> None:
        """Let go of the files."""
        self.index.close()
        self._log.close()

    # ---- parts

    def _read_header(self) -> str:
        """The first record as text; written if the log is new."""
        first = next(self._log.read(), None)
        if first is None:
            header = {"op": "store", "format": FORMAT_VERSION, "id": uuid.uuid4().hex, "generation": 0}
            self._log.append(msgspec.json.encode(header))
            self._log.flush()
            sync_folder(self._folder)
            first = next(self._log.read())
        found = msgspec.json.decode(first[1]).get("format")
        if not isinstance(found, int) or found > FORMAT_VERSION:
            raise ConfigError(
                f"{self._folder} has format {found!r}, and this version reads up to {FORMAT_VERSION}: upgrade ziggurat"
            )
        return first[1].decode()

    def _open_index(self) -> Index:
        path = self._folder / INDEX
        index = self._usable_index(path)
        if index is None:
            for each in self._folder.glob(f"{INDEX}*"):
                each.unlink()
            index = Index(path)
        applied = int(index.meta("applied") or 0)
        if applied < self._log.end:
            with index.change():
                for _, payload in self._log.read(applied):
                    self._apply(index, msgspec.json.decode(payload))
                self._index_is_at_end(index)
        return index

    def _usable_index(self, path: Path) -> Index | None:
        """The index that is there, or a new one; None if it is damaged, of another version, or follows another log."""
        index = None
        try:
            index = Index(path)
            applied, header = int(index.meta("applied") or 0), index.meta("log")
            if index.schema == SCHEMA_VERSION and header in (None, self._header) and applied <= self._log.end:
                return index
        except (sqlite3.DatabaseError, ValueError) as error:
            _LOG.warning("the index %s is damaged (%s) and is made again from the log", path, error)
        if index is not None:
            index.close()
        return None

    def _index_is_at_end(self, index: Index) -> None:
        index.set_meta("applied", str(self._log.end))
        index.set_meta("log", self._header)

    def _apply(self, index: Index, record: dict[str, Any]) -> None:
        op = record["op"]
        if op == "add":
            index.insert(_row(record))
        elif op == "seen":
            index.seen_again(record["id"])
        elif op == "update":
            text = record["text"]
            index.replace_text(record["id"], text, text_hash(text), record["at"], record["update_type"])
        elif op == "status":
            index.set_status(record["id"], record["status"], record["at"])
        elif op == "erased":
            index.erase(record["id"])
            index.mark_stale(record["stale"])
        elif op != "store":
            raise ConfigError(f"{self._folder} has a record {op!r} of a newer version: upgrade ziggurat")


def _row(record: dict[str, Any]) -> dict[str, Any]:
    """A row of the index from a record of the log."""
    at = record["at"]
    return {
        "id": record["id"],
        "text": record["text"],
        "hash": text_hash(record["text"]),
        "kind": record["kind"],
        "status": "active",
        "version": 1,
        **{name: record.get(name, "") for name in ("agent", "session", "speaker")},
        "sources": json.dumps(list(record.get("sources", ()))),
        "tags": json.dumps(list(record.get("tags", ()))),
        "created_s": at,
        "updated_s": at,
        "said_s": record.get("said_s", at),
        "valid_from_s": record.get("valid_from_s", record.get("said_s", at)),
        "valid_until_s": record.get("valid_until_s", FOREVER_S),
        "expires_s": record.get("expires_s", FOREVER_S),
        "confidence": record.get("confidence", 1.0),
        "is_stale": 0,
        "num_seen": 1,
    }
