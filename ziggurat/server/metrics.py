# SPDX-License-Identifier: Apache-2.0
"""Prometheus metrics in a registry of their own: vLLM's suffixes, labels and buckets under the prefix ``ziggurat:``, plus ours in bytes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from ziggurat.engine.types import GenerateOutput
from ziggurat.server.memory_view import memory_view
from ziggurat.server.metric_families import (
    COUNTERS,
    ENGINE,
    HISTOGRAMS,
    LABELS,
    PREFIX,
    EngineCollector,
    Renamed,
    Snapshot,
)
from ziggurat.server.state import ServerState


class ServerMetrics:
    """What this server counts itself; what the engine counts is read when somebody scrapes.

    Args:
        is_doubled: give everything that vLLM has under its prefix too.

    Attributes:
        num_prompt_tokens, num_generation_tokens, num_prefix_queries, num_prefix_hits: running totals, in tokens.
    """

    def __init__(self, state: ServerState, *, is_doubled: bool = False) -> None:
        self.registry = CollectorRegistry()
        self._state = state
        self.num_prompt_tokens = 0
        self.num_generation_tokens = 0
        self.num_prefix_queries = 0
        self.num_prefix_hits = 0
        self._counters = {
            name: Counter(PREFIX + name, text, LABELS, registry=self.registry) for name, text in COUNTERS.items()
        }
        self._sources = self._labelled(
            "prompt_tokens_by_source", "Prompt tokens, by where their KV came from.", "source"
        )
        self._success = self._labelled("request_success", "Choices that ended.", "finished_reason")
        self._histograms = {
            name: Histogram(PREFIX + name, text, LABELS, buckets=buckets, registry=self.registry)
            for name, (text, buckets) in HISTOGRAMS.items()
        }
        self._engine = EngineCollector()
        self.registry.register(self._engine)
        self._doubles = CollectorRegistry()
        if is_doubled:
            self._doubles.register(Renamed(self.registry))

    def _labelled(self, name: str, text: str, label: str) -> Counter:
        return Counter(PREFIX + name, text, (*LABELS, label), registry=self.registry)

    @property
    def labels(self) -> tuple[str, str]:
        """Of everything that belongs to the model."""
        service = self._state.service
        return (service.model_names[0] if service is not None else "", ENGINE)

    def on_prompt(self, num_tokens: int, num_cached: int) -> None:
        """A request's first output: its prompt has been computed."""
        self.num_prompt_tokens += num_tokens
        self.num_prefix_queries += num_tokens
        self.num_prefix_hits += num_cached
        self._count("prompt_tokens", num_tokens)
        self._count("prompt_tokens_cached", num_cached)
        self._count("prefix_cache_queries", num_tokens)
        self._count("prefix_cache_hits", num_cached)
        self._sources.labels(*self.labels, "local_compute").inc(num_tokens - num_cached)
        self._sources.labels(*self.labels, "local_cache_hit").inc(num_cached)

    def on_tokens(self, num_tokens: int) -> None:
        """New tokens of some choice."""
        self.num_generation_tokens += num_tokens
        self._count("generation_tokens", num_tokens)

    def _count(self, name: str, number: int) -> None:
        self._counters[name].labels(*self.labels).inc(number)

    def observe(self, name: str, value: float) -> None:
        """One value of the histogram ``name``."""
        self._histograms[name].labels(*self.labels).observe(value)

    def on_end(self, seconds: float, reason: str) -> None:
        """A choice ended, so long after it arrived."""
        self._success.labels(*self.labels, reason).inc()
        self.observe("e2e_request_latency_seconds", seconds)

    async def render(self) -> bytes:
        """The text that Prometheus scrapes. While the model loads, and after the engine failed, only what the server counts."""
        service = self._state.service
        self._engine.snapshot = None
        if service is not None and self._state.phase != "failed":
            self._engine.snapshot = Snapshot(self.labels, await service.stats(), memory_view(await service.memory()))
        return generate_latest(self.registry) + generate_latest(self._doubles)


@dataclass(slots=True)
class _Choice:
    """When one choice began and went on, seconds; ``scheduled_s`` is None if nobody told."""

    first_s: float
    scheduled_s: float | None
    last_s: float = field(init=False)

    def __post_init__(self) -> None:
        self.last_s = self.first_s


class RequestTimer:
    """The times of one HTTP request, choice by choice.

    Args:
        num_choices: prompts times ``n`` (or ``best_of``): once admitted, those without an end at `on_close` count as aborted.
        num_asked, max_tokens: ``n`` and ``max_tokens`` of the request; None if it said nothing.
    """

    def __init__(
        self,
        metrics: ServerMetrics,
        num_choices: int,
        now: Callable[[], float] = time.monotonic,
        *,
        num_asked: int | None = None,
        max_tokens: int | None = None,
    ) -> None:
        self._metrics = metrics
        self._now = now
        self._arrival_s = now()
        self._num_choices = num_choices
        self._asked = {"request_params_n": num_asked, "request_params_max_tokens": max_tokens}
        self._num_open = 0
        self._prompts: set[int] = set()
        self._choices: dict[tuple[int, int], _Choice] = {}
        self._longest: dict[int, int] = {}

    def on_admitted(self) -> None:
        """The engine has taken the request: from here on it counts."""
        self._num_open = self._num_choices
        for name, value in self._asked.items():
            if value is not None:
                self._metrics.observe(name, value)

    def on_output(self, prompt_index: int, output: GenerateOutput) -> None:
        """New text of a choice."""
        now_s, key = self._now(), (prompt_index, output.index)
        if output.num_output_tokens and prompt_index not in self._prompts:
            self._prompts.add(prompt_index)
            self._metrics.on_prompt(output.num_prompt_tokens, output.num_cached_tokens)
            if output.queue_s is not None:
                self._metrics.observe("request_queue_time_seconds", output.queue_s)
        if output.tokens:
            self._on_tokens(key, output, now_s)
        if output.finish_reason is not None:
            self._num_open -= 1
            self._metrics.on_end(now_s - self._arrival_s, output.finish_reason)
            self._on_finished(key, output)

    def _on_tokens(self, key: tuple[int, int], output: GenerateOutput, now_s: float) -> None:
        self._metrics.on_tokens(len(output.tokens))
        choice = self._choices.get(key)
        if choice is None:
            scheduled_s = None if output.queue_s is None else self._arrival_s + output.queue_s
            self._choices[key] = _Choice(now_s, scheduled_s)
            self._metrics.observe("time_to_first_token_seconds", now_s - self._arrival_s)
        else:
            self._metrics.observe("inter_token_latency_seconds", now_s - choice.last_s)
            choice.last_s = now_s

    def _on_finished(self, key: tuple[int, int], output: GenerateOutput) -> None:
        """Sizes and times of a choice that ended by itself."""
        observe, num_output = self._metrics.observe, output.num_output_tokens
        observe("request_prompt_tokens", output.num_prompt_tokens)
        observe("request_prefill_kv_computed_tokens", output.num_prompt_tokens - output.num_cached_tokens)
        observe("request_generation_tokens", num_output)
        self._longest[key[0]] = max(self._longest.get(key[0], 0), num_output)
        choice = self._choices.get(key)
        if choice is None:
            return  # a prompt that was only scored
        decode_s = choice.last_s - choice.first_s
        observe("request_decode_time_seconds", decode_s)
        if num_output > 1:
            observe("request_time_per_output_token_seconds", decode_s / (num_output - 1))
        if choice.scheduled_s is not None:
            observe("request_prefill_time_seconds", max(0.0, choice.first_s - choice.scheduled_s))
            observe("request_inference_time_seconds", max(0.0, choice.last_s - choice.scheduled_s))

    def on_close(self) -> None:
        """The HTTP request is over; what has not ended was aborted."""
        for _ in range(self._num_open):
            self._metrics.on_end(self._now() - self._arrival_s, "abort")
        self._num_open = 0
        for num_tokens in self._longest.values():
            self._metrics.observe("request_max_num_generation_tokens", num_tokens)
        self._longest.clear()
