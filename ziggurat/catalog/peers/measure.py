# SPDX-License-Identifier: Apache-2.0
"""The measurement: peers take turns within every repeat, so that a slow minute of the machine hits all; rows are medians."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, Protocol

from ziggurat.catalog.peers.process import DEFAULT_TIMEOUT_S, PeerFailed, PeerProcess
from ziggurat.catalog.peers.registry import Job, Peer
from ziggurat.catalog.peers.work import ITEMS, Lengths, Measure, Sampler

Progress = Callable[[int, int, str], None]
"""(steps done, steps in total, what comes next)"""
_WARM_UP_TOKENS = 2


class Session(Protocol):
    """A peer that runs: `PeerProcess`, or something like it in a test."""

    engine: str
    format: str

    def open(self) -> float:
        """Load the model."""
        ...

    def generate(self, prompts: Sequence[Sequence[int]], num_tokens: int) -> float:
        """Seconds of it."""
        ...

    def peak_rss_bytes(self) -> int:
        """The most memory it had."""
        ...


def measure_peers(
    peers: Sequence[type[Peer]], job: Job, lengths: Lengths, *, vocab_size: int, progress: Progress
) -> list[dict[str, Any]]:
    """One row per peer, in their order; those that cannot run here are rows without figures.

    Args:
        vocab_size: prompts are drawn below it.
    """
    with ExitStack() as stack:
        sessions: list[Session] = [
            stack.enter_context(PeerProcess(peer, job, timeout_s=DEFAULT_TIMEOUT_S))
            for peer in peers
            if peer.absent() is None
        ]
        rows = iter(measure_sessions(sessions, lengths, vocab_size=vocab_size, progress=progress))
        return [_absent_row(peer) if peer.absent() is not None else next(rows) for peer in peers]


def measure_sessions(
    sessions: Sequence[Session], lengths: Lengths, *, vocab_size: int, progress: Progress
) -> list[dict[str, Any]]:
    """One row per session. One that fails keeps what it measured, says why, and is left out from there on."""
    rows = [_Row(session) for session in sessions]
    num_steps = len(rows) * (1 + len(ITEMS) * lengths.num_repeats)
    num_done = 0
    for row in rows:
        progress(num_done, num_steps, f"loading {row.name}")
        row.attempt(
            lambda session: _open(session, Sampler(lengths=lengths, vocab_size=vocab_size, rng=random.Random(0)))
        )
        num_done += 1
    for item, measure in ITEMS.items():
        for repeat in range(lengths.num_repeats):
            # A B, then B A: who goes first gains nothing.
            for row in rows if repeat % 2 == 0 else rows[::-1]:
                progress(num_done, num_steps, f"{row.name} {item} {repeat + 1}/{lengths.num_repeats}")
                sampler = Sampler(lengths=lengths, vocab_size=vocab_size, rng=random.Random(f"{item}-{repeat}"))
                row.measure(item, measure, sampler)
                num_done += 1
    for row in rows:
        row.peak_rss_bytes = row.attempt(lambda session: session.peak_rss_bytes())
    progress(num_steps, num_steps, "")
    return [row.result() for row in rows]


def _open(session: Session, sampler: Sampler) -> None:
    """Load, and warm up with a long prompt, so that no measured run pays for the first touch of buffers."""
    session.open()
    session.generate(sampler.prompts(1, sampler.lengths.prefill_tokens), _WARM_UP_TOKENS)


class _Row:
    def __init__(self, session: Session) -> None:
        self._session = session
        self._error: str | None = None
        self.name = f"{session.engine} {session.format}"
        self.samples: dict[str, list[float]] = {item: [] for item in ITEMS}
        self.peak_rss_bytes: int | None = None

    def attempt(self, action: Callable[[Session], Any]) -> Any:
        """The action's result; None if this peer has failed, now or before."""
        if self._error is not None:
            return None
        try:
            return action(self._session)
        except PeerFailed as error:
            self._error = str(error)
            return None

    def measure(self, item: str, measure: Measure, sampler: Sampler) -> None:
        """Add one sample of an item, unless this peer has failed."""
        rate = self.attempt(lambda session: measure(sampler, session.generate))
        if rate is not None:
            self.samples[item].append(rate)

    def result(self) -> dict[str, Any]:
        medians = {item: statistics.median(rates) if rates else None for item, rates in self.samples.items()}
        return {
            "engine": self._session.engine,
            "format": self._session.format,
            **medians,
            "peak_rss_bytes": self.peak_rss_bytes,
            "status": "measured" if self._error is None else "failed",
            "note": self._error,
            "samples": self.samples,
        }


def _absent_row(peer: type[Peer]) -> dict[str, Any]:
    return {
        "engine": peer.engine,
        "format": peer.format,
        **dict.fromkeys(ITEMS),
        "peak_rss_bytes": None,
        "status": "absent",
        "note": peer.absent(),
        "samples": {item: [] for item in ITEMS},
    }
