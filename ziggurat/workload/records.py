# SPDX-License-Identifier: Apache-2.0
"""One typed record in (`Arrival`), one out (`RequestRecord`). Everything that serves requests fills records through a `RecordBook`;
every latency figure is a property of the record and is computed nowhere else.

Definitions (those of ``vllm bench serve``), for a request with token times t1 .. tm::

    arrival --queue--> first scheduled ... t1 .. t2 .. tm
    TTFT = t1 - arrival     ITL = t2 - t1, t3 - t2, ..     TPOT = (tm - t1) / (m - 1)     E2EL = finish - arrival

A request with n > 1 has one row of token times per continuation; gaps are taken within a row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from ziggurat.errors import ConfigError

EndReason = Literal["stop", "length", "abort", "error"]
# Of several continuations the worst ending is the request's.
_WORST_FIRST: tuple[EndReason, ...] = ("error", "abort", "length", "stop")


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """A request of a trace: when it comes and how large it is.

    Attributes:
        t_s: time of arrival, seconds from the start of the trace.
        prompt_ids: the prompt; or None, then ``prompt_len`` tokens stand for it (see `prompt`).
        max_new: tokens to generate.
        session: arrivals of one session have the same beginning.
        n: continuations of the prompt.
        hash_ids: what is known of the prompt when its tokens are not: one number per ``hash_block_tokens`` tokens, the last block
            may be partial. Equal numbers at the same place after equal ones are equal tokens.
        model: of the service that the trace was taken from, as it is written there.
        log_type: the way the request came in, as the trace says it (BurstGPT: conversation or API).
        elapsed_s: seconds until the answer was complete, there and then.

    Raises:
        ConfigError: no prompt at all, or lengths that contradict each other or are below one.
    """

    t_s: float
    id: str
    max_new: int
    prompt_ids: Sequence[int] | None = None
    prompt_len: int = 0
    tenant: str = ""
    session: str | None = None
    priority: int = 0
    n: int = 1
    hash_ids: Sequence[int] = ()
    hash_block_tokens: int = 0
    model: str = ""
    log_type: str = ""
    elapsed_s: float | None = None

    def __post_init__(self) -> None:
        if self.hash_ids and len(self.hash_ids) != -(-self.prompt_len // max(1, self.hash_block_tokens)):
            raise ConfigError(
                f"arrival {self.id!r}: {len(self.hash_ids)} hash_ids for {self.prompt_len} prompt tokens in blocks of "
                f"{self.hash_block_tokens}"
            )
        if self.prompt_ids is not None:
            if self.prompt_len not in (0, len(self.prompt_ids)):
                raise ConfigError(
                    f"arrival {self.id!r}: prompt_len {self.prompt_len}, but {len(self.prompt_ids)} prompt_ids"
                )
            object.__setattr__(self, "prompt_len", len(self.prompt_ids))
        if min(self.prompt_len, self.max_new, self.n) < 1 or self.t_s < 0:
            raise ConfigError(
                f"arrival {self.id!r}: prompt_len, max_new and n must be at least 1 and t_s at least 0, got "
                f"{self.prompt_len}, {self.max_new}, {self.n}, {self.t_s}"
            )

    def prompt(self, vocab_size: int) -> Sequence[int]:
        """Its tokens; made up if it brings none: from its hash ids, so that what was shared in the trace is shared again; else from the
        session (else the id) and the position only, so that the turns of a session share their beginning and nothing else does."""
        if self.prompt_ids is not None:
            return self.prompt_ids
        if self.hash_ids:
            blocks = (_made_up(f"hash/{each}", self.hash_block_tokens, vocab_size) for each in self.hash_ids)
            return [token for block in blocks for token in block][: self.prompt_len]
        name = f"id/{self.id}" if self.session is None else f"session/{self.session}"
        return _made_up(name, self.prompt_len, vocab_size)


def _made_up(name: str, count: int, vocab_size: int) -> list[int]:
    words = memoryview(hashlib.shake_128(name.encode()).digest(4 * count)).cast("I")
    return [word % vocab_size for word in words]


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRecord:
    """What became of one request. Times are seconds by the clock of whoever served it.

    Attributes:
        first_scheduled_s: when it was first admitted; None if it never was.
        token_times_s: one row per continuation.
        finish_s: when its last continuation ended, or when it was refused; None if it is still open.
        reason: how it ended, the worst of its continuations; None if it is still open.
        error: message of a refusal or failure.
        num_cached_tokens: prompt tokens found cached at the first admission.
    """

    id: str
    arrival_s: float
    num_prompt_tokens: int
    tenant: str = ""
    session: str | None = None
    first_scheduled_s: float | None = None
    token_times_s: tuple[tuple[float, ...], ...] = ()
    finish_s: float | None = None
    reason: EndReason | None = None
    error: str | None = None
    num_cached_tokens: int = 0
    num_preemptions: int = 0

    @property
    def is_success(self) -> bool:
        """It ended by itself."""
        return self.reason in ("stop", "length")

    @property
    def num_output_tokens(self) -> int:
        """Of all continuations."""
        return sum(len(row) for row in self.token_times_s)

    @property
    def queue_s(self) -> float | None:
        """Arrival to first admission."""
        return None if self.first_scheduled_s is None else self.first_scheduled_s - self.arrival_s

    @property
    def ttft_s(self) -> float | None:
        """Time to first token; None if there was none."""
        firsts = [row[0] for row in self.token_times_s if row]
        return min(firsts) - self.arrival_s if firsts else None

    @property
    def tpot_s(self) -> float | None:
        """Time per output token after the first; None with fewer than two."""
        rows = [row for row in self.token_times_s if len(row) > 1]
        num_gaps = sum(len(row) - 1 for row in rows)
        return sum(row[-1] - row[0] for row in rows) / num_gaps if num_gaps else None

    @property
    def itl_s(self) -> list[float]:
        """Gaps between successive tokens."""
        return [later - earlier for row in self.token_times_s for earlier, later in pairwise(row)]

    @property
    def e2el_s(self) -> float | None:
        """Arrival to end."""
        return None if self.finish_s is None else self.finish_s - self.arrival_s


@dataclass(slots=True)
class _OpenRecord:
    arrival_s: float
    num_prompt_tokens: int
    tenant: str
    session: str | None
    token_times_s: list[list[float]]
    first_scheduled_s: float | None = None
    finish_s: float | None = None
    reasons: list[EndReason] = field(default_factory=list)
    error: str | None = None
    num_cached_tokens: int = 0
    num_preemptions: int = 0


class RecordBook:
    """Collects events into records. The caller brings the times; events of unknown requests are an error of the caller."""

    def __init__(self) -> None:
        self._records: dict[str, _OpenRecord] = {}

    def arrive(
        self,
        request_id: str,
        t_s: float,
        num_prompt_tokens: int,
        *,
        n: int = 1,
        tenant: str = "",
        session: str | None = None,
    ) -> None:
        """A request came in; ``n`` continuations will end."""
        assert request_id not in self._records, f"{request_id} arrived twice"
        rows: list[list[float]] = [[] for _ in range(n)]
        self._records[request_id] = _OpenRecord(t_s, num_prompt_tokens, tenant, session, rows)

    def refuse(self, request_id: str, t_s: float, error: str) -> None:
        """It was not accepted; it counts as failed."""
        record = self._records[request_id]
        record.finish_s, record.error = t_s, error
        record.reasons = ["error"] * len(record.token_times_s)

    def admit(self, request_id: str, t_s: float, num_cached_tokens: int) -> None:
        """It runs for the first time; later calls (after preemption) change nothing."""
        record = self._records[request_id]
        if record.first_scheduled_s is None:
            record.first_scheduled_s = t_s
            record.num_cached_tokens = num_cached_tokens

    def token(self, request_id: str, index: int, t_s: float) -> None:
        """A token of continuation ``index`` is out."""
        self._records[request_id].token_times_s[index].append(t_s)

    def end(
        self, request_id: str, t_s: float, reason: EndReason, *, num_preemptions: int = 0, error: str | None = None
    ) -> None:
        """A continuation ended."""
        record = self._records[request_id]
        record.reasons.append(reason)
        assert len(record.reasons) <= len(record.token_times_s), f"a continuation of {request_id} ended twice"
        record.num_preemptions += num_preemptions
        record.error = record.error or error
        record.finish_s = t_s

    def arrival_s(self, request_id: str) -> float:
        """When it came."""
        return self._records[request_id].arrival_s

    def is_done(self, request_id: str) -> bool:
        """All continuations have ended."""
        record = self._records[request_id]
        return len(record.reasons) == len(record.token_times_s)

    def pop(self, request_id: str) -> RequestRecord:
        """Take a record out of the book, as it is now; a server that runs for weeks does this when a request is done."""
        record = self._freeze(request_id)
        del self._records[request_id]
        return record

    def records(self) -> list[RequestRecord]:
        """All records in order of arrival, open ones too (reason None)."""
        return [self._freeze(request_id) for request_id in self._records]

    def _freeze(self, request_id: str) -> RequestRecord:
        record = self._records[request_id]
        is_done = self.is_done(request_id)
        return RequestRecord(
            id=request_id,
            arrival_s=record.arrival_s,
            num_prompt_tokens=record.num_prompt_tokens,
            tenant=record.tenant,
            session=record.session,
            first_scheduled_s=record.first_scheduled_s,
            token_times_s=tuple(tuple(row) for row in record.token_times_s),
            finish_s=record.finish_s if is_done else None,
            reason=next(reason for reason in _WORST_FIRST if reason in record.reasons) if is_done else None,
            error=record.error,
            num_cached_tokens=record.num_cached_tokens,
            num_preemptions=record.num_preemptions,
        )
