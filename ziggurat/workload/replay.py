# SPDX-License-Identifier: Apache-2.0
"""Plays a workload against anything that serves: an engine in this process, a core in virtual time, a server over HTTP.

One thread: requests that are due are sent, then the client is polled. A request's record starts at the moment it was *due*, so that
a late sender cannot make the server look fast; how late it was is in the `Drift`.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ziggurat.errors import RequestError
from ziggurat.workload.metrics import percentile
from ziggurat.workload.records import Arrival, EndReason, RecordBook, RequestRecord
from ziggurat.workload.sources import Source


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened to a request at ``t_s`` by the client's clock.

    Attributes:
        index: which of the request's continuations.
        num_tokens: new tokens.
        token_ids: their ids, if the client can tell.
        num_cached_tokens: set once, when the request was first scheduled; None otherwise.
        queue_s: with ``num_cached_tokens``: seconds it had waited, if the client only hears of it later.
        end: why the continuation ended, if it did.
    """

    request_id: str
    t_s: float
    index: int = 0
    num_tokens: int = 0
    token_ids: Sequence[int] = ()
    num_cached_tokens: int | None = None
    queue_s: float | None = None
    end: EndReason | None = None
    num_preemptions: int = 0
    error: str | None = None


class Client(Protocol):
    """Somebody who serves."""

    def now(self) -> float:
        """The clock of the events, seconds."""
        ...

    def submit(self, arrival: Arrival, due_s: float) -> None:
        """Send a request that was due at ``due_s`` by the client's clock.

        Raises:
            RequestError: it is refused.
        """
        ...

    def poll(self, until_s: float | None) -> list[Event]:
        """Get on with what was sent, and return what happened: at the latest when the clock reaches ``until_s``, if it is given and
        nothing happens before. With nothing open it sleeps until then."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """How late requests were sent: the client's own part of every latency. Seconds; all zero is a perfect sender."""

    mean_s: float
    p99_s: float
    max_s: float

    def as_dict(self) -> dict[str, float]:
        """In ms, for JSON."""
        return {f"{name}_ms": 1000 * getattr(self, f"{name}_s") for name in ("mean", "p99", "max")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """What came of a workload.

    Attributes:
        records: in the order of sending; refused requests have one too.
        answers: token ids of the first continuation per request id, where the client can tell.
        start_s: the client's clock at the start; times of records count from it.
    """

    records: list[RequestRecord]
    drift: Drift
    answers: dict[str, list[int]] = field(default_factory=dict)
    start_s: float = 0.0


def replay(source: Source, client: Client, *, deadline_s: float | None = None) -> Replayed:
    """Send everything and wait for everything.

    Args:
        deadline_s: seconds after which nothing new is sent and nothing is waited for; open requests stay open in their records.
    """
    return _Replay(source, client).run(deadline_s)


class _Replay:
    def __init__(self, source: Source, client: Client) -> None:
        self._source = source
        self._client = client
        self._book = RecordBook()
        self._late_s: list[float] = []
        self._answers: dict[str, list[int]] = {}
        self._num_tokens: dict[str, int] = {}
        self._start_s = client.now()

    def run(self, deadline_s: float | None) -> Replayed:
        while self._source.next_s() is not None or self._num_tokens:
            now_s = self._client.now() - self._start_s
            if deadline_s is not None and now_s >= deadline_s:
                break
            while (due_s := self._source.next_s()) is not None and due_s <= now_s:
                self._send(self._source.pop(), now_s)
            until_s = None if due_s is None else self._start_s + due_s
            for event in self._client.poll(until_s):
                self._note(event)
        late_s = self._late_s or [0.0]
        drift = Drift(mean_s=statistics.fmean(late_s), p99_s=percentile(late_s, 99), max_s=max(late_s))
        return Replayed(records=self._book.records(), drift=drift, answers=self._answers, start_s=self._start_s)

    def _send(self, arrival: Arrival, now_s: float) -> None:
        book = self._book
        book.arrive(
            arrival.id, arrival.t_s, arrival.prompt_len, n=arrival.n, tenant=arrival.tenant, session=arrival.session
        )
        self._late_s.append(now_s - arrival.t_s)
        self._num_tokens[arrival.id] = 0
        try:
            self._client.submit(arrival, self._start_s + arrival.t_s)
        except RequestError as error:
            book.refuse(arrival.id, now_s, str(error))
            self._close(arrival.id, now_s)

    def _note(self, event: Event) -> None:
        name, t_s = event.request_id, event.t_s - self._start_s
        if event.num_cached_tokens is not None:
            waited_s = t_s if event.queue_s is None else self._book.arrival_s(name) + event.queue_s
            self._book.admit(name, waited_s, event.num_cached_tokens)
        for _ in range(event.num_tokens):
            self._book.token(name, event.index, t_s)
        if event.index == 0:
            self._num_tokens[name] += event.num_tokens
            self._answers.setdefault(name, []).extend(event.token_ids)
        if event.end is not None:
            self._book.end(name, t_s, event.end, num_preemptions=event.num_preemptions, error=event.error)
            if self._book.is_done(name):
                self._close(name, t_s)

    def _close(self, name: str, t_s: float) -> None:
        self._source.on_end(name, t_s, self._answers.get(name, ()), self._num_tokens.pop(name))
