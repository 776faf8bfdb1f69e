# SPDX-License-Identifier: Apache-2.0
"""Prometheus metrics in a registry of their own: vLLM's suffixes, labels and buckets under the prefix ``ziggurat:``, plus ours in bytes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ziggurat.engine.types import GenerateOutput
from ziggurat.server.memory_view import MemoryView, memory_view
from ziggurat.server.service import ServiceStats
from ziggurat.server.state import ServerState

PREFIX = "ziggurat:"
LABELS = ("model_name", "engine")
ENGINE = "0"
# Buckets as vLLM has them, so that its dashboards read ours.
TTFT_BUCKETS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
ITL_BUCKETS = (
    0.01,
    0.025,
    0.05,
    0.075,
    0.1,
    0.15,
    0.2,
    0.3,
    0.4,
    0.5,
    0.75,
    1.0,
    2.5,
    5.0,
    7.5,
    10.0,
    20.0,
    40.0,
    80.0,
)
REQUEST_BUCKETS = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)


class ServerMetrics:
    """What this server counts itself; what the engine counts is read when somebody scrapes.

    Attributes:
        num_prompt_tokens, num_generation_tokens, num_prefix_queries, num_prefix_hits: running totals, in tokens.
    """

    def __init__(self, state: ServerState) -> None:
        self.registry = CollectorRegistry()
        self._state = state
        self.num_prompt_tokens = 0
        self.num_generation_tokens = 0
        self.num_prefix_queries = 0
        self.num_prefix_hits = 0
        self._counters = {
            name: Counter(PREFIX + name, text, LABELS, registry=self.registry)
            for name, text in (
                ("prompt_tokens", "Prompt tokens of requests that produced output."),
                ("generation_tokens", "Generated tokens."),
                ("prefix_cache_queries", "Prompt tokens looked up in the prefix cache."),
                ("prefix_cache_hits", "Prompt tokens found in the prefix cache."),
            )
        }
        self._success = Counter(
            PREFIX + "request_success", "Choices that ended.", (*LABELS, "finished_reason"), registry=self.registry
        )
        self._ttft = self._histogram("time_to_first_token_seconds", "Arrival to first token.", TTFT_BUCKETS)
        self._itl = self._histogram("inter_token_latency_seconds", "Gap between a choice's outputs.", ITL_BUCKETS)
        self._e2e = self._histogram("e2e_request_latency_seconds", "Arrival to end of a choice.", REQUEST_BUCKETS)
        self._queue = self._histogram("request_queue_time_seconds", "Arrival to first scheduling.", REQUEST_BUCKETS)
        self._engine = EngineCollector()
        self.registry.register(self._engine)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(PREFIX + name, text, LABELS, buckets=buckets, registry=self.registry)

    @property
    def labels(self) -> tuple[str, str]:
        service = self._state.service
        return (service.model_names[0] if service is not None else "", ENGINE)

    def on_prompt(self, num_tokens: int, num_cached: int) -> None:
        """A request's first output: its prompt has been computed."""
        self.num_prompt_tokens += num_tokens
        self.num_prefix_queries += num_tokens
        self.num_prefix_hits += num_cached
        self._counters["prompt_tokens"].labels(*self.labels).inc(num_tokens)
        self._counters["prefix_cache_queries"].labels(*self.labels).inc(num_tokens)
        self._counters["prefix_cache_hits"].labels(*self.labels).inc(num_cached)

    def on_tokens(self, num_tokens: int) -> None:
        """New tokens of some choice."""
        self.num_generation_tokens += num_tokens
        self._counters["generation_tokens"].labels(*self.labels).inc(num_tokens)

    def on_first_token(self, seconds: float) -> None:
        self._ttft.labels(*self.labels).observe(seconds)

    def on_gap(self, seconds: float) -> None:
        self._itl.labels(*self.labels).observe(seconds)

    def on_queue_time(self, seconds: float) -> None:
        self._queue.labels(*self.labels).observe(seconds)

    def on_end(self, seconds: float, reason: str) -> None:
        self._success.labels(*self.labels, reason).inc()
        self._e2e.labels(*self.labels).observe(seconds)

    async def render(self) -> bytes:
        """The text that Prometheus scrapes. While the model loads, and after the engine failed, only what the server counts."""
        service = self._state.service
        self._engine.snapshot = None
        if service is not None and self._state.phase != "failed":
            self._engine.snapshot = Snapshot(self.labels, await service.stats(), memory_view(await service.memory()))
        return generate_latest(self.registry)


class RequestTimer:
    """The times of one HTTP request, choice by choice.

    Args:
        num_choices: prompts times ``n`` (or ``best_of``): once admitted, those without an end at `on_close` count as aborted.
    """

    def __init__(self, metrics: ServerMetrics, num_choices: int, now: Callable[[], float] = time.monotonic) -> None:
        self._metrics = metrics
        self._now = now
        self._arrival_s = now()
        self._num_choices = num_choices
        self._num_open = 0
        self._prompts: set[int] = set()
        self._last_s: dict[tuple[int, int], float] = {}

    def on_admitted(self) -> None:
        """The engine has taken the request: from here on it counts."""
        self._num_open = self._num_choices

    def on_output(self, prompt_index: int, output: GenerateOutput) -> None:
        """New text of a choice."""
        now_s, key = self._now(), (prompt_index, output.index)
        if output.num_output_tokens and prompt_index not in self._prompts:
            self._prompts.add(prompt_index)
            self._metrics.on_prompt(output.num_prompt_tokens, output.num_cached_tokens)
            if output.queue_s is not None:
                self._metrics.on_queue_time(output.queue_s)
        if output.tokens:
            self._metrics.on_tokens(len(output.tokens))
            if key in self._last_s:
                self._metrics.on_gap(now_s - self._last_s[key])
            else:
                self._metrics.on_first_token(now_s - self._arrival_s)
            self._last_s[key] = now_s
        if output.finish_reason is not None:
            self._num_open -= 1
            self._metrics.on_end(now_s - self._arrival_s, output.finish_reason)

    def on_close(self) -> None:
        """The HTTP request is over; what has not ended was aborted."""
        for _ in range(self._num_open):
            self._metrics.on_end(self._now() - self._arrival_s, "abort")
        self._num_open = 0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the engine said for one scrape."""

    labels: tuple[str, str]
    stats: ServiceStats
    memory: MemoryView


class EngineCollector(Collector):
    """Gauges and counters that the engine and its ledger keep, as of ``snapshot``."""

    def __init__(self) -> None:
        self.snapshot: Snapshot | None = None

    def collect(self) -> Iterable[Metric]:
        if self.snapshot is None:
            return
        stats, labels = self.snapshot.stats, self.snapshot.labels
        yield _gauge("num_requests_running", "Sequences in the running batch.", labels, stats.num_running)
        yield _gauge("num_requests_waiting", "Requests in the queue.", labels, stats.num_waiting)
        yield _gauge(
            "kv_cache_usage_perc", "Share of the KV pool held by requests, 0 to 1.", labels, stats.kv_usage_ratio
        )
        preemptions = CounterMetricFamily(PREFIX + "num_preemptions", "Sequences that gave up their KV.", labels=LABELS)
        preemptions.add_metric(labels, stats.num_preemptions)
        yield preemptions
        yield from _memory_metrics(self.snapshot.memory)


def _memory_metrics(view: MemoryView) -> Iterable[Metric]:
    held = GaugeMetricFamily(PREFIX + "memory_bytes", "Bytes held, by kind and tier.", labels=("kind", "tier"))
    for (kind, tier), num_bytes in sorted(view.bytes_by_kind.items()):
        held.add_metric((kind, tier), num_bytes)
    yield held
    budget = GaugeMetricFamily(PREFIX + "memory_budget_bytes", "Bytes allowed, by tier.", labels=("tier",))
    for tier, num_bytes in sorted(view.budget_by_tier.items()):
        budget.add_metric((tier,), num_bytes)
    yield budget
    pss = GaugeMetricFamily(PREFIX + "pss_bytes", "Proportional set size of the process.")
    pss.add_metric((), view.pss_bytes)
    yield pss
    waste = GaugeMetricFamily(PREFIX + "kv_waste_ratio", "Share of held KV bytes that nobody will read, 0 to 1.")
    waste.add_metric((), view.kv_waste_ratio)
    yield waste


def _gauge(name: str, text: str, labels: tuple[str, str], value: float) -> GaugeMetricFamily:
    family = GaugeMetricFamily(PREFIX + name, text, labels=LABELS)
    family.add_metric(labels, value)
    return family
