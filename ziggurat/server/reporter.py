# SPDX-License-Identifier: Apache-2.0
"""The console line: while requests run, one every few seconds with throughput, queue, KV usage and prefix hits."""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict, dataclass

from ziggurat.errors import EngineError
from ziggurat.server.console import log_event
from ziggurat.server.metrics import ServerMetrics
from ziggurat.server.service import Service, ServiceStats


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """The server's running totals at one moment."""

    at_s: float
    num_prompt_tokens: int
    num_generation_tokens: int
    num_prefix_queries: int
    num_prefix_hits: int

    @classmethod
    def take(cls, metrics: ServerMetrics, now_s: float) -> Totals:
        """Copy them from the metrics."""
        return cls(
            at_s=now_s,
            num_prompt_tokens=metrics.num_prompt_tokens,
            num_generation_tokens=metrics.num_generation_tokens,
            num_prefix_queries=metrics.num_prefix_queries,
            num_prefix_hits=metrics.num_prefix_hits,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """What happened between two moments; rates in tokens per second, ratios from 0 to 1."""

    prompt_tokens_per_s: float
    generation_tokens_per_s: float
    num_running: int
    num_waiting: int
    kv_usage_ratio: float
    prefix_hit_ratio: float

    def line(self) -> str:
        """For people, in vLLM's order."""
        return (
            f"prompt {self.prompt_tokens_per_s:.1f} tokens/s, generation {self.generation_tokens_per_s:.1f} tokens/s, "
            f"running {self.num_running}, waiting {self.num_waiting}, "
            f"KV usage {100 * self.kv_usage_ratio:.1f}%, prefix hits {100 * self.prefix_hit_ratio:.1f}%"
        )


def interval(before: Totals, after: Totals, stats: ServiceStats) -> Interval | None:
    """What to tell of the time between two moments; None when nothing happened."""
    span_s = max(after.at_s - before.at_s, 1e-9)
    prompt = after.num_prompt_tokens - before.num_prompt_tokens
    generated = after.num_generation_tokens - before.num_generation_tokens
    if not (prompt or generated or stats.num_running or stats.num_waiting):
        return None
    queries = after.num_prefix_queries
    return Interval(
        prompt_tokens_per_s=prompt / span_s,
        generation_tokens_per_s=generated / span_s,
        num_running=stats.num_running,
        num_waiting=stats.num_waiting,
        kv_usage_ratio=stats.kv_usage_ratio,
        prefix_hit_ratio=after.num_prefix_hits / queries if queries else 0.0,
    )


async def report(service: Service, metrics: ServerMetrics, interval_s: float) -> None:
    """Log a line per interval until cancelled, or until the engine fails."""
    before = Totals.take(metrics, time.monotonic())
    while True:
        await asyncio.sleep(interval_s)
        try:
            stats = await service.stats()
        except EngineError:
            return  # the server itself reports the failure
        after = Totals.take(metrics, time.monotonic())
        told = interval(before, after, stats)
        if told is not None:
            log_event("stats", told.line(), {name: round(value, 4) for name, value in asdict(told).items()})
        before = after
