# SPDX-License-Identifier: Apache-2.0
"""`MemStore`: memories of one owner in one folder. The log is the truth; the index follows from it and can be made again.

A write is acknowledged when the log is on the disk, and visible to searches by words at once. Vectors follow with `catch_up`. Owners have
folders of their own (`MemStores`), so that no query, filter or score of one can reach what another wrote.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ziggurat.errors import ConfigError, NotFound, RequestError
from ziggurat.recall.cube import (
    Filter,
    Hit,
    MemCube,
    NewMemory,
    Version,
    VersionConflict,
    check_label,
    check_text,
    text_hash,
)
from ziggurat.recall.encoder import Encoder
from ziggurat.recall.records import INDEX, Records
from ziggurat.recall.text import stem_of_word, words
from ziggurat.recall.vectors import Vectors

MAX_QUERY_BYTES = 16_384
# Candidates of each signal: what both miss cannot be found.
CANDIDATES = 200
WEIGHTS = {"words": 0.5, "meaning": 0.7}
_ENCODED_AT_ONCE = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Added:
    """What became of a new memory. ``is_new`` False: the same text was there, under ``id``."""

    id: str
    is_new: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What a deletion did.

    Attributes:
        num_records: records of the log that went; 0 for a soft deletion, which can be taken back.
        num_stale: memories that were made from it and are stale now.
    """

    id: str
    is_hard: bool
    deleted_s: float
    num_records: int
    num_stale: int


class MemStore:
    """The memories of one owner. One process writes; not thread-safe. Its owner calls `close`.

    Args:
        folder: made if it is not there.
        encoder: for search by meaning; None searches by words.
        clock: Unix seconds.
        new_id: names of memories.

    Raises:
        ConfigError: another process writes it, it is from a newer version, or its vectors are of another encoder.
    """

    def __init__(
        self,
        folder: Path,
        *,
        encoder: Encoder | None = None,
        clock: Callable[[], float] = time.time,
        new_id: Callable[[], str] = lambda: uuid.uuid4().hex,
    ) -> None:
        self.folder, self.encoder = folder, encoder
        self._clock, self._new_id = clock, new_id
        self._records = Records(folder)
        self._index = self._records.index
        try:
            self._vectors = None if encoder is None else self._load_vectors(encoder)
        except BaseException:
            self._records.close()
            raise

    # ---- writing

    def add(self, memories: Sequence[NewMemory]) -> list[Added]:
        """Remember, all or nothing; durable on return. The same text in the same agent's session is not kept twice.

        Raises:
            RequestError: one cannot be kept; nothing of the call was.
            ConfigError: the disk is full.
        """
        now_s = self._clock()
        for memory in memories:
            memory.check(now_s)
            for source in memory.sources:
                if self._index.get(source) is None:
                    raise RequestError(f"source {source[:64]!r} is no memory of this store", param="sources")
        added: list[Added] = []
        records: list[dict[str, Any]] = []
        fresh: dict[tuple[str, str, str], str] = {}
        for memory in memories:
            scope = (text_hash(memory.text), memory.agent, memory.session)
            known = fresh.get(scope) or self._index.by_hash(*scope)
            if known is None:
                known = fresh[scope] = self._new_id()
                records.append(
                    {
                        "op": "add",
                        "id": known,
                        "at": now_s,
                        **{k: v for k, v in asdict(memory).items() if v is not None},
                    }
                )
                added.append(Added(id=known, is_new=True))
            else:
                records.append({"op": "seen", "id": known, "at": now_s})
                added.append(Added(id=known, is_new=False))
        self._records.commit(records)
        return added

    def update(
        self, memory_id: str, text: str, *, expected_version: int | None = None, update_type: str = "feedback"
    ) -> MemCube:
        """Replace the text; the old one stays in the history. What was made from it becomes stale.

        Args:
            update_type: why (``conflict``, ``duplicate``, ``extract``, ``feedback`` ..).

        Raises:
            VersionConflict: ``expected_version`` is not the present one.
            RequestError: no such memory, or the text cannot be kept.
        """
        check_text(text)
        check_label(update_type, "update_type")
        memory = self._active(memory_id)
        if expected_version is not None and memory.version != expected_version:
            raise VersionConflict(memory_id, expected=expected_version, found=memory.version)
        self._forget_vector(memory_id)
        self._records.commit(
            [{"op": "update", "id": memory_id, "at": self._clock(), "text": text, "update_type": update_type}]
        )
        return self._active(memory_id)

    def restore(self, memory_id: str, version: int) -> MemCube:
        """Go back to an earlier text, as a new version; a soft deletion is taken back.

        Raises:
            RequestError: no such memory or version.
        """
        memory = self._known(memory_id)
        found = [each for each in self._index.versions(memory_id) if each.version == version]
        if not found:
            raise RequestError(f"memory {memory_id} has versions 1 to {memory.version}, not {version}", param="version")
        now_s = self._clock()
        records: list[dict[str, Any]] = []
        if memory.status != "active":
            records.append({"op": "status", "id": memory_id, "at": now_s, "status": "active"})
        if found[0].text != memory.text:
            self._forget_vector(memory_id)
            records.append(
                {
                    "op": "update",
                    "id": memory_id,
                    "at": now_s,
                    "text": found[0].text,
                    "update_type": f"restore {version}",
                }
            )
        self._records.commit(records)
        return self._active(memory_id)

    def delete(self, memory_id: str, *, hard: bool = False) -> Receipt:
        """Forget. Soft: it is found no more and can be restored. Hard: no byte of it stays in log or index.

        Raises:
            RequestError: no such memory.
        """
        self._known(memory_id)
        now_s = self._clock()
        stale = len(self._index.descendants(memory_id))
        num_records = 0
        if hard:
            self._forget_vector(memory_id)
            num_records = self._records.erase(memory_id, now_s)
        else:
            self._records.commit([{"op": "status", "id": memory_id, "at": now_s, "status": "deleted"}])
        return Receipt(id=memory_id, is_hard=hard, deleted_s=now_s, num_records=num_records, num_stale=stale)

    def sweep(self) -> int:
        """Archive what has expired; returns how many."""
        now_s = self._clock()
        expired = self._index.expired(now_s)
        self._records.commit([{"op": "status", "id": each, "at": now_s, "status": "archived"} for each in expired])
        return len(expired)

    # ---- reading

    def get(self, memory_id: str) -> MemCube:
        """A memory, deleted or not.

        Raises:
            RequestError: no such memory.
        """
        return self._known(memory_id)

    def history(self, memory_id: str) -> list[Version]:
        """Every text it had, first to last.

        Raises:
            RequestError: no such memory.
        """
        self._known(memory_id)
        return self._index.versions(memory_id)

    def derived(self, memory_id: str) -> list[str]:
        """Ids of memories that were made from it directly."""
        return self._index.derived(memory_id)

    def search(self, query: str, *, k: int = 10, wanted: Filter | None = None) -> list[Hit]:
        """The memories that answer best, by words and, with an encoder, by meaning. Only those that the filter lets through are ranked.

        Raises:
            RequestError: an empty or too long query, or a ``k`` out of range.
        """
        if not query.strip() or len(query.encode("utf-8", "replace")) > MAX_QUERY_BYTES:
            raise RequestError(f"a query has 1 to {MAX_QUERY_BYTES} bytes, not only spaces", param="query")
        if not 1 <= k <= 1000:
            raise RequestError(f"k must be between 1 and 1000, got {k}", param="k")
        wanted, now_s = wanted or Filter(), self._clock()
        limit = max(CANDIDATES, k)
        rows = {"words": dict(self._index.by_words(query, wanted, now_s, limit))}
        if self._vectors is not None:
            rows["meaning"] = self._by_meaning(query, wanted, now_s, limit)
        parts = {name: _scaled(row) for name, row in rows.items()}
        scores: dict[int, float] = {}
        for name, row in parts.items():
            for seq, value in row.items():
                scores[seq] = scores.get(seq, 0.0) + WEIGHTS[name] * value
        best = sorted(scores, key=lambda seq: (-scores[seq], seq))[:k]
        cubes = self._index.cubes(best)
        asked = stem_of_word(query)
        hits = [
            Hit(
                memory=cubes[seq],
                score=scores[seq],
                parts={name: WEIGHTS[name] * row[seq] for name, row in parts.items() if seq in row},
                words=_shared_words(asked, cubes[seq]),
            )
            for seq in best
        ]
        self._index.used(hit.memory.id for hit in hits)
        return hits

    def all(self, wanted: Filter | None = None) -> Iterator[MemCube]:
        """Every memory, deleted ones too; with a filter only active ones that it lets through."""
        return self._index.all(wanted, self._clock())

    def catch_up(self, limit: int | None = None) -> int:
        """Encode memories that have no vector yet; returns how many are still left."""
        if self.encoder is None or self._vectors is None:
            return 0
        done = 0
        while limit is None or done < limit:
            some = self._index.without_vector(min(_ENCODED_AT_ONCE, (limit or _ENCODED_AT_ONCE)))
            if not some:
                return 0
            rows = self.encoder.encode([text for _, text in some])
            with self._index.change():
                self._index.add_vectors(
                    (seq, row.astype("<f4").tobytes()) for (seq, _), row in zip(some, rows, strict=True)
                )
            self._vectors.put((seq, row) for (seq, _), row in zip(some, rows, strict=True))
            done += len(some)
        return int(self.stats()["num_without_vector"])

    def stats(self) -> dict[str, Any]:
        """Counts and bytes: ``num_active``, ``num_archived``, ``num_deleted``, ``num_vectors``, ``num_without_vector`` (the lag of search
        by meaning), ``log_bytes``, ``index_bytes``, ``encoder``."""
        counts = self._index.counts()
        active = counts.get("active", 0)
        num_vectors = self._index.num_vectors()
        return {
            **{f"num_{status}": counts.get(status, 0) for status in ("active", "archived", "deleted")},
            "num_vectors": num_vectors,
            "num_without_vector": 0 if self.encoder is None else max(0, active - num_vectors),
            "log_bytes": self._records.log_bytes,
            "index_bytes": sum(each.stat().st_size for each in self.folder.glob(f"{INDEX}*")),
            "encoder": None if self.encoder is None else self.encoder.name,
            "torn_bytes": self._records.num_torn_bytes,
        }

    def close(self) -> None:
        """Let go of the files."""
        self._records.close()

    def __enter__(self) -> MemStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- parts

    def _known(self, memory_id: str) -> MemCube:
        memory = self._index.get(memory_id)
        if memory is None:
            raise NotFound(f"no memory {memory_id[:64]!r} in this store", param="id", code="memory_not_found")
        return memory

    def _active(self, memory_id: str) -> MemCube:
        memory = self._known(memory_id)
        if memory.status != "active":
            raise RequestError(f"memory {memory_id} is {memory.status}; restore it first", param="id")
        return memory

    def _by_meaning(self, query: str, wanted: Filter, now_s: float, limit: int) -> dict[int, float]:
        """Cosines of the nearest that the filter lets through; looks further while the filter takes most of them away."""
        assert self.encoder is not None and self._vectors is not None
        asked = self.encoder.encode([query])[0].astype(np.float32)
        reach = limit
        while True:
            near = self._vectors.nearest(asked, reach)
            allowed = self._index.allowed([seq for seq, _ in near], wanted, now_s)
            if len(allowed) >= limit or reach >= len(self._vectors):
                return dict([pair for pair in near if pair[0] in allowed][:limit])
            reach *= 4

    def _forget_vector(self, memory_id: str) -> None:
        """Of a text that is about to change."""
        seq = self._index.seq(memory_id)
        if self._vectors is not None and seq is not None:
            self._vectors.remove(seq)

    def _load_vectors(self, encoder: Encoder) -> Vectors:
        name = self._index.meta("encoder")
        if name is not None and name != encoder.name:
            raise ConfigError(
                f"{self.folder} has vectors of {name!r}, and the encoder is {encoder.name!r}: search with that one, or re-index with "
                "`ziggurat recall reindex`"
            )
        self._index.set_meta("encoder", encoder.name)
        vectors = Vectors(encoder.dim)
        vectors.put((seq, np.frombuffer(raw, "<f4")) for seq, raw in self._index.vectors())
        return vectors


def _scaled(row: dict[int, float]) -> dict[int, float]:
    """Between 0 and 1 within the candidates, so that signals can be added; a lone or level one counts 1."""
    if not row:
        return {}
    low, high = min(row.values()), max(row.values())
    return {seq: 1.0 if high == low else (value - low) / (high - low) for seq, value in row.items()}


def _shared_words(asked: dict[str, str], memory: MemCube) -> tuple[str, ...]:
    stems = set(words(f"{memory.speaker} {memory.text} {' '.join(memory.tags)}"))
    return tuple(word for word, stem in asked.items() if stem in stems)
