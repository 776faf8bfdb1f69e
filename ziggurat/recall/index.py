# SPDX-License-Identifier: Apache-2.0
"""The index of one store: SQLite with full-text search, made from the log and made again when it is not there or does not fit.

Words are the stems of `ziggurat.recall.text`, so that FTS5's BM25 (k1 1.2, b 0.75) ranks as `ziggurat.recall.bm25` does. Values only go in
as parameters and words only as quoted strings: nothing that a user writes is SQL or query syntax.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ziggurat.errors import ConfigError
from ziggurat.recall.cube import Filter, MemCube, Version
from ziggurat.recall.text import words

SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE memories (
    seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, text TEXT NOT NULL, hash TEXT NOT NULL, kind TEXT NOT NULL, status TEXT NOT NULL,
    version INTEGER NOT NULL, agent TEXT NOT NULL, session TEXT NOT NULL, speaker TEXT NOT NULL, sources TEXT NOT NULL, tags TEXT NOT NULL,
    created_s REAL NOT NULL, updated_s REAL NOT NULL, said_s REAL NOT NULL, valid_from_s REAL NOT NULL, valid_until_s REAL NOT NULL,
    expires_s REAL NOT NULL, confidence REAL NOT NULL, is_stale INTEGER NOT NULL, num_seen INTEGER NOT NULL
);
CREATE INDEX memories_hash ON memories (hash);
CREATE INDEX memories_session ON memories (session, said_s);
CREATE TABLE versions (id TEXT NOT NULL, version INTEGER NOT NULL, text TEXT NOT NULL, changed_s REAL NOT NULL, update_type TEXT NOT NULL,
    PRIMARY KEY (id, version));
CREATE TABLE lineage (source TEXT NOT NULL, id TEXT NOT NULL, PRIMARY KEY (source, id));
CREATE TABLE uses (id TEXT PRIMARY KEY, num_uses INTEGER NOT NULL);
CREATE TABLE vectors (seq INTEGER PRIMARY KEY, vector BLOB NOT NULL);
CREATE VIRTUAL TABLE postings USING fts5 (stems, tokenize="ascii");
"""
_COLUMNS = (
    *(
        "seq",
        "id",
        "text",
        "hash",
        "kind",
        "status",
        "version",
        "agent",
        "session",
        "speaker",
        "sources",
        "tags",
        "created_s",
    ),
    *("updated_s", "said_s", "valid_from_s", "valid_until_s", "expires_s", "confidence", "is_stale", "num_seen"),
)


class Index:
    """One SQLite file. Not thread-safe.

    Args:
        path: made if it is not there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        # The log is the truth and is flushed first, so a commit of the index need not wait for the disk.
        for pragma in ("journal_mode = WAL", "synchronous = NORMAL", "secure_delete = ON", "temp_store = MEMORY"):
            self._db.execute(f"PRAGMA {pragma}")
        if not self._db.execute("SELECT 1 FROM sqlite_master WHERE name = 'meta'").fetchone():
            self._db.executescript(f"BEGIN; {_SCHEMA} COMMIT;")
            self.set_meta("schema", str(SCHEMA_VERSION))

    @property
    def schema(self) -> int:
        """The version of the tables."""
        return int(self.meta("schema") or 0)

    def meta(self, name: str) -> str | None:
        """A value of the index itself."""
        row = self._db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return None if row is None else str(row[0])

    def set_meta(self, name: str, value: str) -> None:
        """Keep a value."""
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))

    @contextmanager
    def change(self) -> Iterator[None]:
        """Everything inside, or nothing.

        Raises:
            ConfigError: the disk is full.
        """
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except sqlite3.OperationalError as error:
            self._db.execute("ROLLBACK")
            raise ConfigError(f"cannot write {self.path}: {error}") from None
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    # ---- what the log says

    def insert(self, row: dict[str, Any]) -> None:
        """A new memory. ``row`` has a value for every column but ``seq``."""
        names = [name for name in _COLUMNS if name != "seq"]
        marks = ", ".join("?" * len(names))
        cursor = self._db.execute(
            f"INSERT INTO memories ({', '.join(names)}) VALUES ({marks})", [row[name] for name in names]
        )
        self._db.execute("INSERT INTO postings (rowid, stems) VALUES (?, ?)", (cursor.lastrowid, _stems(row)))
        self._db.execute(
            "INSERT INTO versions VALUES (?, 1, ?, ?, 'added')", (row["id"], row["text"], row["created_s"])
        )
        for source in json.loads(row["sources"]):
            self._db.execute("INSERT OR IGNORE INTO lineage VALUES (?, ?)", (source, row["id"]))

    def replace_text(self, memory_id: str, text: str, text_hash: str, now_s: float, update_type: str) -> None:
        """A new version of a memory; what was made from it becomes stale, and what from that."""
        self._db.execute(
            "UPDATE memories SET text = ?, hash = ?, version = version + 1, updated_s = ?, is_stale = 0 WHERE id = ?",
            (text, text_hash, now_s, memory_id),
        )
        row = self._row(memory_id)
        assert row is not None, "the log changes a memory that it never added"
        self._db.execute("DELETE FROM postings WHERE rowid = ?", (row["seq"],))
        self._db.execute("INSERT INTO postings (rowid, stems) VALUES (?, ?)", (row["seq"], _stems(row)))
        self._db.execute("DELETE FROM vectors WHERE seq = ?", (row["seq"],))
        self._db.execute(
            "INSERT INTO versions VALUES (?, ?, ?, ?, ?)", (memory_id, row["version"], text, now_s, update_type)
        )
        self.mark_stale(self.descendants(memory_id))

    def set_status(self, memory_id: str, status: str, now_s: float) -> None:
        """Active, archived or deleted."""
        self._db.execute("UPDATE memories SET status = ?, updated_s = ? WHERE id = ?", (status, now_s, memory_id))
        if status != "active":
            self.mark_stale(self.descendants(memory_id))

    def seen_again(self, memory_id: str) -> None:
        """The same text came once more."""
        self._db.execute("UPDATE memories SET num_seen = num_seen + 1 WHERE id = ?", (memory_id,))

    def erase(self, memory_id: str) -> None:
        """Every trace in the tables. What is free is overwritten; `vacuum` gives the rest back."""
        row = self._row(memory_id)
        if row is not None:
            self.mark_stale(self.descendants(memory_id))
            self._db.execute("DELETE FROM postings WHERE rowid = ?", (row["seq"],))
            self._db.execute("DELETE FROM vectors WHERE seq = ?", (row["seq"],))
        for table in ("memories", "versions", "uses"):
            self._db.execute(f"DELETE FROM {table} WHERE id = ?", (memory_id,))
        for derived in self.derived(memory_id):
            found = self._row(derived)
            if found is not None:
                sources = [each for each in json.loads(found["sources"]) if each != memory_id]
                self._db.execute("UPDATE memories SET sources = ? WHERE id = ?", (json.dumps(sources), derived))
        self._db.execute("DELETE FROM lineage WHERE id = ? OR source = ?", (memory_id, memory_id))

    def mark_stale(self, memory_ids: Iterable[str]) -> None:
        """Something that these were made from has changed or gone."""
        self._db.executemany("UPDATE memories SET is_stale = 1 WHERE id = ?", [(each,) for each in memory_ids])

    def vacuum(self) -> None:
        """Leave nothing of what was erased in the files."""
        self._db.execute("INSERT INTO postings (postings) VALUES ('optimize')")
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._db.execute("VACUUM")
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    # ---- questions

    def get(self, memory_id: str) -> MemCube | None:
        """A memory in any status."""
        row = self._row(memory_id)
        return None if row is None else _cube(row)

    def seq(self, memory_id: str) -> int | None:
        """The number of a memory."""
        row = self._db.execute("SELECT seq FROM memories WHERE id = ?", (memory_id,)).fetchone()
        return None if row is None else int(row[0])

    def by_hash(self, text_hash: str, agent: str, session: str) -> str | None:
        """The active memory of the same scope with that text."""
        row = self._db.execute(
            "SELECT id FROM memories WHERE hash = ? AND agent = ? AND session = ? AND status = 'active'",
            (text_hash, agent, session),
        ).fetchone()
        return None if row is None else str(row[0])

    def versions(self, memory_id: str) -> list[Version]:
        """Every text it had, first to last."""
        rows = self._db.execute(
            "SELECT version, text, changed_s, update_type FROM versions WHERE id = ? ORDER BY version", (memory_id,)
        )
        return [Version(version=v, text=text, changed_s=at, update_type=why) for v, text, at, why in rows]

    def derived(self, memory_id: str) -> list[str]:
        """Ids of what was made from it directly."""
        rows = self._db.execute("SELECT id FROM lineage WHERE source = ? ORDER BY id", (memory_id,))
        return [str(each) for (each,) in rows]

    def descendants(self, memory_id: str) -> list[str]:
        """Ids of what was made from it, directly or not."""
        pending, seen = [memory_id], {memory_id}
        while pending:
            new = [each for each in self.derived(pending.pop()) if each not in seen]
            seen.update(new)
            pending += new
        return sorted(seen - {memory_id})

    def by_words(self, query: str, wanted: Filter, now_s: float, limit: int) -> list[tuple[int, float]]:
        """(seq, BM25) of the active memories with any of the query's words, best first."""
        stems = list(dict.fromkeys(words(query)))
        if not stems:
            return []
        match = " OR ".join(f'"{stem}"' for stem in stems)  # stems are [a-z0-9]+
        where, values = _where(wanted, now_s)
        rows = self._db.execute(
            "SELECT postings.rowid, -bm25(postings) FROM postings JOIN memories ON memories.seq = postings.rowid "
            f"WHERE postings MATCH ? AND {where} ORDER BY bm25(postings), postings.rowid LIMIT ?",
            (match, *values, limit),
        )
        return [(int(seq), float(score)) for seq, score in rows]

    def allowed(self, seqs: Sequence[int], wanted: Filter, now_s: float) -> set[int]:
        """Those of the numbers that a filter lets through."""
        where, values = _where(wanted, now_s)
        found: set[int] = set()
        for start in range(0, len(seqs), 500):
            some = list(seqs[start : start + 500])
            marks = ", ".join("?" * len(some))
            rows = self._db.execute(f"SELECT seq FROM memories WHERE seq IN ({marks}) AND {where}", (*some, *values))
            found.update(int(seq) for (seq,) in rows)
        return found

    def cubes(self, seqs: Iterable[int]) -> dict[int, MemCube]:
        """Memories by number."""
        rows = [self._select("seq = ?", (seq,)).fetchone() for seq in seqs]
        return {int(row["seq"]): _cube(row) for row in map(_as_dict, rows) if row is not None}

    def used(self, memory_ids: Iterable[str]) -> None:
        """Count a use. Counts are hints and not in the log: a rebuilt index starts them again."""
        self._db.executemany(
            "INSERT INTO uses VALUES (?, 1) ON CONFLICT (id) DO UPDATE SET num_uses = num_uses + 1",
            [(each,) for each in memory_ids],
        )

    def all(self, wanted: Filter | None = None, now_s: float = 0.0) -> Iterator[MemCube]:
        """Every memory in the order of arrival; with a filter, the active ones that it lets through."""
        where, values = ("1", ()) if wanted is None else _where(wanted, now_s)
        for row in self._select(f"{where} ORDER BY seq", values):
            found = _as_dict(row)
            assert found is not None
            yield _cube(found)

    def expired(self, now_s: float) -> list[str]:
        """Ids of active memories whose lifetime is over."""
        rows = self._db.execute("SELECT id FROM memories WHERE status = 'active' AND expires_s <= ?", (now_s,))
        return [str(each) for (each,) in rows]

    def counts(self) -> dict[str, int]:
        """Memories by status."""
        rows = self._db.execute("SELECT status, count(*) FROM memories GROUP BY status")
        return {str(status): int(count) for status, count in rows}

    # ---- vectors

    def without_vector(self, limit: int) -> list[tuple[int, str]]:
        """(seq, text) of active memories that have no vector yet, oldest first."""
        rows = self._db.execute(
            "SELECT seq, speaker, text FROM memories WHERE status = 'active' AND seq NOT IN (SELECT seq FROM vectors) "
            "ORDER BY seq LIMIT ?",
            (limit,),
        )
        return [(int(seq), f"{speaker}: {text}" if speaker else text) for seq, speaker, text in rows]

    def add_vectors(self, vectors: Iterable[tuple[int, bytes]]) -> None:
        """Keep vectors by number."""
        self._db.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?)", vectors)

    def vectors(self) -> Iterator[tuple[int, bytes]]:
        """All of them."""
        yield from self._db.execute("SELECT seq, vector FROM vectors ORDER BY seq")

    def drop_vectors(self) -> None:
        """Forget all vectors."""
        self._db.execute("DELETE FROM vectors")

    def num_vectors(self) -> int:
        """How many there are."""
        return int(self._db.execute("SELECT count(*) FROM vectors").fetchone()[0])

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    def _row(self, memory_id: str) -> dict[str, Any] | None:
        return _as_dict(self._select("memories.id = ?", (memory_id,)).fetchone())

    def _select(self, where: str, values: Sequence[Any]) -> sqlite3.Cursor:
        columns = ", ".join(f"memories.{name}" for name in _COLUMNS)
        return self._db.execute(
            f"SELECT {columns}, coalesce(num_uses, 0) FROM memories LEFT JOIN uses ON uses.id = memories.id WHERE {where}",
            values,
        )


def _as_dict(row: Sequence[Any] | None) -> dict[str, Any] | None:
    return None if row is None else dict(zip((*_COLUMNS, "num_uses"), row, strict=True))


def _cube(row: dict[str, Any]) -> MemCube:
    values = {name: row[name] for name in MemCube.__dataclass_fields__}
    values["sources"], values["tags"] = tuple(json.loads(row["sources"])), tuple(json.loads(row["tags"]))
    values["is_stale"] = bool(row["is_stale"])
    return MemCube(**values)


def _stems(row: dict[str, Any]) -> str:
    return " ".join(words(f"{row['speaker']} {row['text']} {' '.join(json.loads(row['tags']))}"))


def _where(wanted: Filter, now_s: float) -> tuple[str, tuple[Any, ...]]:
    """What holds of a memory that may be seen: inside the query, so that nothing else is counted or ranked."""
    at = now_s if wanted.as_of_s is None else wanted.as_of_s
    parts = ["status = 'active'", "expires_s > ?", "valid_from_s <= ?", "valid_until_s > ?"]
    values: list[Any] = [now_s, at, at]
    if wanted.as_of_s is not None:
        parts.append("created_s <= ?")
        values.append(at)
    for column, value in (("kind = ?", wanted.kind), ("agent = ?", wanted.agent), ("session = ?", wanted.session)):
        if value is not None:
            parts.append(column)
            values.append(value)
    for column, bound in (("said_s >= ?", wanted.since_s), ("said_s < ?", wanted.until_s)):
        if bound is not None:
            parts.append(column)
            values.append(bound)
    return " AND ".join(parts), tuple(values)
