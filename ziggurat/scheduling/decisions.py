# SPDX-License-Identifier: Apache-2.0
"""The decision log: what was decided in each step and nothing that depends on time or tensors. Equal logs, equal decisions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from typing import Any

from ziggurat.scheduling.outputs import Finished, StepOutput
from ziggurat.scheduling.protocol import Batch

Record = dict[str, Any]


class DecisionLog:
    """One JSON-able record per step, kept in memory (``keep``), and a running digest of them.

    A record: ``{"step": 3, "preempted": [seq], "admitted": [[seq, cached tokens]], "chunks": [[seq, start, tokens]],
    "finished": [[seq, reason]]}``. ``finished`` also names sequences that were ended from outside since the step before.
    """

    def __init__(self, *, keep: bool = True) -> None:
        self._keep = keep
        self._records: list[Record] = []
        self._hash = hashlib.blake2b(digest_size=16)
        self._length = 0

    def file(self, output: StepOutput, batch: Batch, ended: Iterable[Finished]) -> None:
        """File a step of the core; ``ended`` are the sequences that ended since the step before, in it or from outside."""
        self.append(
            step=output.step,
            preempted=output.preempted,
            admitted=((entry.seq_id, entry.num_cached_tokens) for entry in output.admitted),
            chunks=((item.seq_id, item.start, len(item.token_ids)) for item in batch.items),
            finished=((entry.seq_id, entry.reason) for entry in ended),
        )

    def append(
        self,
        *,
        step: int,
        preempted: Iterable[str],
        admitted: Iterable[tuple[str, int]],
        chunks: Iterable[tuple[str, int, int]],
        finished: Iterable[tuple[str, str]],
    ) -> None:
        """File one step."""
        record: Record = {
            "step": step,
            "preempted": list(preempted),
            "admitted": [list(entry) for entry in admitted],
            "chunks": [list(entry) for entry in chunks],
            "finished": [list(entry) for entry in finished],
        }
        self._hash.update(json.dumps(record, separators=(",", ":")).encode() + b"\n")
        self._length += 1
        if self._keep:
            self._records.append(record)

    def digest(self) -> str:
        """A hexadecimal fingerprint of all records so far."""
        return self._hash.hexdigest()

    def first_difference(self, other: DecisionLog) -> tuple[Record | None, Record | None] | None:
        """The first pair of records that differ (None stands for a missing one), or None if the kept records are equal."""
        for index in range(max(len(self._records), len(other._records))):
            mine = self._records[index] if index < len(self._records) else None
            theirs = other._records[index] if index < len(other._records) else None
            if mine != theirs:
                return mine, theirs
        return None

    def to_jsonl(self) -> str:
        """The kept records, one JSON object a line."""
        return "".join(json.dumps(record, separators=(",", ":")) + "\n" for record in self._records)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Record]:
        return iter(self._records)
