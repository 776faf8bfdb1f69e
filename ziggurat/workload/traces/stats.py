# SPDX-License-Identifier: Apache-2.0
"""What a trace is like: rates, burstiness per window, lengths, sessions, services, shared beginnings. One pass, numbers only in memory."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ziggurat.errors import ConfigError
from ziggurat.workload.arrival_windows import MIN_GAPS, Window, split_windows
from ziggurat.workload.records import Arrival
from ziggurat.workload.traces.blocks import BlockNames, prefix_source

QUANTILES = (50, 80, 90, 95, 99)


@dataclass(slots=True)
class TraceSummary:
    """Collects requests one by one; `as_dict` says what they are like.

    Args:
        block_tokens: size of the blocks in which shared beginnings are counted.
    """

    block_tokens: int = 512
    times_s: array[float] = field(default_factory=lambda: array("d"))
    prompts: array[int] = field(default_factory=lambda: array("q"))
    outputs: array[int] = field(default_factory=lambda: array("q"))
    elapsed_s: array[float] = field(default_factory=lambda: array("d"))
    services: dict[tuple[str, str], tuple[array[int], array[int]]] = field(default_factory=dict)
    session_sizes: Counter[str] = field(default_factory=Counter)
    pauses_s: array[float] = field(default_factory=lambda: array("d"))
    sources: Counter[str] = field(default_factory=Counter)
    num_blocks: int = 0
    num_repeated_blocks: int = 0
    _last_s: dict[str, float] = field(default_factory=dict)
    _names: BlockNames = field(init=False)

    def __post_init__(self) -> None:
        if self.block_tokens < 1:
            raise ConfigError(f"blocks must have at least one token, got {self.block_tokens}")
        self._names = BlockNames(self.block_tokens)

    def add_all(self, arrivals: Iterable[Arrival]) -> TraceSummary:
        """Take in a whole trace, in order of time."""
        for arrival in arrivals:
            self.add(arrival)
        return self

    def add(self, arrival: Arrival) -> None:
        """Take in the next request."""
        self.times_s.append(arrival.t_s)
        self.prompts.append(arrival.prompt_len)
        self.outputs.append(arrival.max_new)
        prompts, outputs = self.services.setdefault((arrival.model, arrival.log_type), (array("q"), array("q")))
        prompts.append(arrival.prompt_len)
        outputs.append(arrival.max_new)
        if arrival.elapsed_s is not None:
            self.elapsed_s.append(arrival.elapsed_s)
        if arrival.session is not None:
            self.session_sizes[arrival.session] += 1
            if arrival.session in self._last_s:
                self.pauses_s.append(arrival.t_s - self._last_s[arrival.session])
            self._last_s[arrival.session] = arrival.t_s
        self._add_blocks(arrival)

    def _add_blocks(self, arrival: Arrival) -> None:
        self.sources[prefix_source(arrival)] += 1
        num_before = self._names.num_distinct
        names = self._names.of(arrival)
        if names is not None:
            self.num_blocks += len(names)
            self.num_repeated_blocks += len(names) - (self._names.num_distinct - num_before)

    def as_dict(self, *, window_s: float = 300.0) -> dict[str, Any]:
        """For JSON; docs/traces.md has the keys. A figure without a sample is None.

        Raises:
            ConfigError: the window is not above 0.
        """
        times = np.asarray(self.times_s)
        duration_s = float(times[-1] - times[0]) if times.size else 0.0
        return {
            "start_s": float(times[0]) if times.size else None,
            "end_s": float(times[-1]) if times.size else None,
            "duration_s": duration_s,
            "request_rate_per_s": times.size / duration_s if duration_s > 0 else None,
            "gap_cv": coefficient_of_variation(np.diff(times)),
            "windows": windows_as_dict(split_windows(times, window_s), window_s),
            "prompt_tokens": spread(self.prompts),
            "output_tokens": spread(self.outputs),
            "elapsed_s": spread(self.elapsed_s),
            "sessions": self._sessions(),
            "services": self._services(),
            "prefix": self._prefix(),
        }

    def _services(self) -> list[dict[str, Any]]:
        """Each model and log type for itself: their shapes differ."""
        return [
            {
                "model": model,
                "log_type": log_type,
                "num_requests": len(prompts),
                "prompt_tokens": spread(prompts),
                "output_tokens": spread(outputs),
            }
            for (model, log_type), (prompts, outputs) in sorted(self.services.items())
        ]

    def _sessions(self) -> dict[str, Any]:
        num_inside = sum(self.session_sizes.values())
        return {
            "num_sessions": len(self.session_sizes),
            "num_requests_outside": len(self.times_s) - num_inside,
            "requests_per_session": spread(array("q", self.session_sizes.values())),
            "gap_s": spread(self.pauses_s),
        }

    def _prefix(self) -> dict[str, Any]:
        known = {source: count for source, count in self.sources.items() if source != "none"}
        return {
            "source": "none" if not known else "mixed" if len(known) > 1 else next(iter(known)),
            "num_requests_unknown": self.sources["none"],
            "block_size_tokens": self.block_tokens,
            "num_blocks": self.num_blocks,
            "num_distinct_blocks": self.num_blocks - self.num_repeated_blocks,
            "num_repeated_blocks": self.num_repeated_blocks,
            "repeated_ratio": self.num_repeated_blocks / self.num_blocks if self.num_blocks else None,
        }


def coefficient_of_variation(gaps_s: np.ndarray[Any, np.dtype[np.float64]]) -> float | None:
    """Standard deviation over mean; None with fewer than two gaps or a mean of 0."""
    if gaps_s.size < 2 or gaps_s.mean() <= 0:
        return None
    return float(gaps_s.std() / gaps_s.mean())


def spread(values: array[int] | array[float]) -> dict[str, Any]:
    """Count, total, mean, least, quantiles (linear between neighbours) and largest."""
    if not values:
        return {"count": 0, "total": 0, "mean": None, "min": None, **{f"p{q}": None for q in QUANTILES}, "max": None}
    found = np.asarray(values)
    quantiles = np.percentile(found, QUANTILES)
    return {
        "count": len(values),
        "total": found.sum().item(),
        "mean": float(found.mean()),
        "min": found.min().item(),
        **{f"p{percent}": float(value) for percent, value in zip(QUANTILES, quantiles, strict=True)},
        "max": found.max().item(),
    }


def windows_as_dict(windows: list[Window], window_s: float) -> dict[str, Any]:
    """How rate and burstiness change over the trace; windows with too few gaps have no coefficient of variation."""
    # The last one ends early, and a rate over a moment says nothing.
    whole = [window for window in windows if window.width_s == window_s] or windows
    rates = [window.times_s.size / window.width_s for window in whole]
    found = [coefficient_of_variation(window.gaps_s) for window in windows if window.gaps_s.size >= MIN_GAPS]
    cvs = [cv for cv in found if cv is not None]
    return {
        "window_s": window_s,
        "num_windows": len(windows),
        "num_empty": sum(not window.times_s.size for window in windows),
        "num_with_cv": len(cvs),
        "rate_per_s": spread(array("d", rates)),
        "gap_cv": spread(array("d", cvs)),
    }
