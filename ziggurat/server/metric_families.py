# SPDX-License-Identifier: Apache-2.0
"""Names, labels and buckets of the metrics, what the engine counts at a scrape, and the same under vLLM's prefix."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ziggurat.server.memory_view import MemoryView
from ziggurat.server.service import ServiceStats

PREFIX = "ziggurat:"
VLLM_PREFIX = "vllm:"
LABELS = ("model_name", "engine")
ENGINE = "0"
# What vLLM does not have; everything else has its name, labels and buckets.
OURS = (
    *("memory_bytes", "memory_budget_bytes", "pss_bytes", "charged_bytes", "kv_waste_ratio", "kv_cache_bytes"),
    *(
        "recomputed_tokens",
        "swapped_out_tokens",
        "swapped_in_tokens",
        "evicted_blocks",
        "engine_steps",
        "engine_busy_seconds",
        "clients",
        "jain_index",
    ),
)
# Buckets as vLLM has them, so that its dashboards read ours.
TTFT_BUCKETS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
ITL_BUCKETS = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0),
)
REQUEST_BUCKETS = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
N_BUCKETS = (1.0, 2.0, 5.0, 10.0, 20.0)
# vLLM's steps of 1, 2 and 5; it ends them at the model's context, which is not known yet when the server begins.
TOKEN_BUCKETS = tuple(float(step * 10**power) for power in range(6) for step in (1, 2, 5))
HISTOGRAMS: Mapping[str, tuple[str, tuple[float, ...]]] = {
    "time_to_first_token_seconds": ("Arrival to first token.", TTFT_BUCKETS),
    "inter_token_latency_seconds": ("Gap between a choice's outputs.", ITL_BUCKETS),
    "request_time_per_output_token_seconds": ("Time per token of a choice after its first.", ITL_BUCKETS),
    "e2e_request_latency_seconds": ("Arrival to end of a choice.", REQUEST_BUCKETS),
    "request_queue_time_seconds": ("Arrival to first scheduling.", REQUEST_BUCKETS),
    "request_inference_time_seconds": ("First scheduling to last token of a choice.", REQUEST_BUCKETS),
    "request_prefill_time_seconds": ("First scheduling to first token of a choice.", REQUEST_BUCKETS),
    "request_decode_time_seconds": ("First to last token of a choice.", REQUEST_BUCKETS),
    "request_prompt_tokens": ("Prompt tokens of a choice that ended.", TOKEN_BUCKETS),
    "request_generation_tokens": ("Generated tokens of a choice that ended.", TOKEN_BUCKETS),
    "request_max_num_generation_tokens": ("Tokens of the longest choice of a prompt.", TOKEN_BUCKETS),
    "request_prefill_kv_computed_tokens": ("Prompt tokens that were not cached.", TOKEN_BUCKETS),
    "request_params_n": ("Choices asked for.", N_BUCKETS),
    "request_params_max_tokens": ("Tokens asked for at most.", TOKEN_BUCKETS),
}
COUNTERS: Mapping[str, str] = {
    "prompt_tokens": "Prompt tokens of requests that produced output.",
    "prompt_tokens_cached": "Prompt tokens found in the prefix cache.",
    "generation_tokens": "Generated tokens.",
    "prefix_cache_queries": "Prompt tokens looked up in the prefix cache.",
    "prefix_cache_hits": "Prompt tokens found in the prefix cache.",
}


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
        """The families of one scrape; none while there is no engine."""
        if self.snapshot is None:
            return
        yield from _queue_metrics(self.snapshot.labels, self.snapshot.stats)
        yield from _work_metrics(self.snapshot.labels, self.snapshot.stats)
        yield _cache_info(self.snapshot)
        yield from _memory_metrics(self.snapshot.memory)


class Renamed(Collector):
    """Another registry's families under vLLM's prefix, without those that are ours alone."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        """The families as they are now."""
        for family in self._registry.collect():
            suffix = family.name.removeprefix(PREFIX)
            if suffix in OURS:
                continue
            renamed = Metric(VLLM_PREFIX + suffix, family.documentation, family.type)
            renamed.samples = [
                sample._replace(name=VLLM_PREFIX + sample.name.removeprefix(PREFIX)) for sample in family.samples
            ]
            yield renamed


def _queue_metrics(labels: tuple[str, str], stats: ServiceStats) -> Iterable[Metric]:
    yield _gauge("num_requests_running", "Sequences in the running batch.", labels, stats.num_running)
    yield _gauge("num_requests_waiting", "Requests in the queue.", labels, stats.num_waiting)
    text = "Requests in the queue, by why they wait."
    reasons = GaugeMetricFamily(PREFIX + "num_requests_waiting_by_reason", text, labels=(*LABELS, "reason"))
    # Whoever waits here waits for a seat or for memory; nothing is put off for another reason.
    reasons.add_metric((*labels, "capacity"), stats.num_waiting)
    reasons.add_metric((*labels, "deferred"), 0)
    yield reasons
    yield _gauge("clients", "Clients that are remembered.", labels, stats.num_clients)
    text = "How evenly clients with open requests were served, by weight: 1/n to 1."
    yield _gauge("jain_index", text, labels, stats.jain_index)
    text = "Share of the KV pool held by requests, 0 to 1."
    yield _gauge("kv_cache_usage_perc", text, labels, stats.kv_usage_ratio)


def _work_metrics(labels: tuple[str, str], stats: ServiceStats) -> Iterable[Metric]:
    for name, text, value in (
        ("num_preemptions", "Sequences that gave up their KV.", stats.num_preemptions),
        ("recomputed_tokens", "Tokens computed again after a preemption.", stats.num_recomputed_tokens),
        ("swapped_out_tokens", "Tokens whose KV was copied to the swap space.", stats.num_swapped_out_tokens),
        (
            "swapped_in_tokens",
            "Tokens whose KV was copied back instead of computed again.",
            stats.num_swapped_in_tokens,
        ),
        ("evicted_blocks", "Reusable KV blocks that were given up.", stats.num_evicted_blocks),
        ("engine_steps", "Steps of the engine.", stats.num_steps),
        ("engine_busy_seconds", "Time spent in steps.", stats.busy_s),
    ):
        family = CounterMetricFamily(PREFIX + name, text, labels=LABELS)
        family.add_metric(labels, value)
        yield family


def _cache_info(snapshot: Snapshot) -> Metric:
    """Value 1, settings as labels: for a join in a dashboard."""
    family = GaugeMetricFamily(PREFIX + "cache_config_info", "Settings of the KV cache.", labels=())
    view, labels = snapshot.memory, dict(zip(LABELS, snapshot.labels, strict=True))
    settings = {
        "block_size": str(view.block_size_tokens),
        "num_gpu_blocks": str(view.num_blocks),
        "enable_prefix_caching": str(view.has_prefix_cache),
    }
    family.add_sample(family.name, labels | settings, 1)
    return family


def _memory_metrics(view: MemoryView) -> Iterable[Metric]:
    yield _by("memory_bytes", "Bytes held, by kind and tier.", ("kind", "tier"), view.bytes_by_kind)
    yield _by(
        "memory_budget_bytes", "Bytes allowed, by tier.", ("tier",), {(k,): v for k, v in view.budget_by_tier.items()}
    )
    states = {(state,): num_bytes for state, num_bytes in view.kv_bytes_by_state.items()}
    yield _by("kv_cache_bytes", "Bytes of the KV pool: used by requests, cached, free.", ("state",), states)
    yield _by("pss_bytes", "Proportional set size of the process.", (), {(): view.pss_bytes})
    text = "Pss with pages of mapped files in full: what the budget is checked against."
    yield _by("charged_bytes", text, (), {(): view.charged_bytes})
    yield _by("kv_waste_ratio", "Share of held KV bytes that nobody will read, 0 to 1.", (), {(): view.kv_waste_ratio})


def _by(name: str, text: str, labels: tuple[str, ...], values: Mapping[Any, float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(PREFIX + name, text, labels=labels)
    for key, value in sorted(values.items()):
        family.add_metric(key, value)
    return family


def _gauge(name: str, text: str, labels: tuple[str, str], value: float) -> GaugeMetricFamily:
    return _by(name, text, LABELS, {labels: value})
