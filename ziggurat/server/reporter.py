# SPDX-License-Identifier: Apache-2.0
"""The console line: while requests run, one every few seconds with throughput, queue, KV usage and prefix hits."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass

from ziggurat.errors import EngineError
from ziggurat.server.metrics import ServerMetrics
from ziggurat.server.service import Service, ServiceStats

log = logging.getLogger("ziggurat.server")


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


def console_line(before: Totals, after: Totals, stats: ServiceStats) -> str | None:
    """What to print for the time between two moments; None when nothing happened."""
    span_s = max(after.at_s - before.at_s, 1e-9)
    prompt = after.num_prompt_tokens - before.num_prompt_tokens
    generated = after.num_generation_tokens - before.num_generation_tokens
    if not (prompt or generated or stats.num_running or stats.num_waiting):
        return None
    queries = after.num_prefix_queries
    hit_percent = 100 * after.num_prefix_hits / queries if queries else 0.0
    return (
        f"prompt {prompt / span_s:.1f} tokens/s, generation {generated / span_s:.1f} tokens/s, "
        f"running {stats.num_running}, waiting {stats.num_waiting}, "
        f"KV usage {100 * stats.kv_usage_ratio:.1f}%, prefix hits {hit_percent:.1f}%"
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
        line = console_line(before, after, stats)
        if line is not None:
            log.info(line)
        before = after
