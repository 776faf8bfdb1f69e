# SPDX-License-Identifier: Apache-2.0
"""Failed requests: how often a service failed according to its trace, and how often ours does in a replay. The same two ways to fail:
no answer at all, or one that came too late."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from ziggurat.errors import ConfigError
from ziggurat.workload.records import Arrival, RequestRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureReport:
    """What became of a replay. Every request is in exactly one of the three.

    Attributes:
        num_dropped: refused, failed, aborted or still open.
        num_late: ended by itself, but after the limit.
    """

    num_answered: int
    num_dropped: int
    num_late: int

    @property
    def failure_rate(self) -> float | None:
        """Share of requests that were dropped or late; None without requests."""
        total = self.num_answered + self.num_dropped + self.num_late
        return (self.num_dropped + self.num_late) / total if total else None


def failure_report(records: Sequence[RequestRecord], *, timeout_s: float = math.inf) -> FailureReport:
    """Count a replay's failures.

    Args:
        timeout_s: the longest time from arrival to the complete answer that counts as one.

    Raises:
        ConfigError: the limit is not above 0.
    """
    if not timeout_s > 0:
        raise ConfigError(f"a time limit must be above 0 s, got {timeout_s}")
    ended = [record.e2el_s for record in records if record.is_success]
    num_late = sum(e2el_s is None or e2el_s > timeout_s for e2el_s in ended)
    return FailureReport(
        num_answered=len(ended) - num_late,
        num_dropped=len(records) - len(ended),
        num_late=num_late,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureModel:
    """Requests fail independently with one probability.

    Raises:
        ConfigError: the share is not in [0, 1).
    """

    share: float

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise ConfigError(f"the share of failed requests must be at least 0 and below 1, got {self.share}")

    @classmethod
    def fit(
        cls, *, num_answered: int, num_failed: int, elapsed_s: Sequence[float] = (), timeout_s: float = math.inf
    ) -> FailureModel:
        """From the counts of a trace; answers that took longer than ``timeout_s`` there count as failed.

        Raises:
            ConfigError: nothing was answered.
        """
        num_late = sum(each > timeout_s for each in elapsed_s)
        if num_answered <= num_late:
            raise ConfigError(
                f"none of {num_answered + num_failed} requests was answered in time: no share can be told"
            )
        return cls(share=(num_failed + num_late) / (num_answered + num_failed))

    def survivors(self, arrivals: Sequence[Arrival], *, seed: int = 0) -> list[Arrival]:
        """The requests that a service of that share would have answered: what is left when a trace drops its failures."""
        rng = random.Random(f"failures/{seed}")
        return [arrival for arrival in arrivals if rng.random() >= self.share]
