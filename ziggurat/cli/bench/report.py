# SPDX-License-Identifier: Apache-2.0
"""The result of a run by the keys and on the 50 columns that people know from ``vllm bench serve``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from ziggurat.catalog.machine import commit, describe_machine
from ziggurat.catalog.results import ROOT
from ziggurat.workload.metrics import Summary
from ziggurat.workload.records import RequestRecord

WIDTH = 50
_LINES = (
    ("Successful requests", "completed"),
    ("Failed requests", "failed"),
    ("Maximum request concurrency", "max_concurrency"),
    ("Request rate configured (RPS)", "request_rate"),
    ("Benchmark duration (s)", "duration"),
    ("Total input tokens", "total_input_tokens"),
    ("Total cached tokens", "total_cached_tokens"),
    ("Total generated tokens", "total_output_tokens"),
    ("Request throughput (req/s)", "request_throughput"),
    ("Request goodput (req/s)", "request_goodput"),
    ("Output token throughput (tok/s)", "output_throughput"),
    ("Peak output token throughput (tok/s)", "max_output_tokens_per_s"),
    ("Peak concurrent requests", "max_concurrent_requests"),
    ("Total token throughput (tok/s)", "total_token_throughput"),
)
METRICS = {
    "ttft": "Time to First Token",
    "tpot": "Time per Output Token (excl. 1st token)",
    "itl": "Inter-token Latency",
    "e2el": "End-to-end Latency",
}


def machine_facts(command: str) -> dict[str, Any]:
    """Where, when, with what: without them a figure means nothing."""
    return {
        "date": datetime.now(UTC).strftime("%Y%m%d-%H%M%S"),
        "machine": describe_machine(),
        "commit": commit(ROOT),
        "command": command,
    }


def rate_text(rate: float) -> float | str:
    """vLLM writes an unbounded rate as text, because JSON has no infinity."""
    return "inf" if rate == math.inf else rate


def details(records: Sequence[RequestRecord]) -> dict[str, Any]:
    """One entry per request, for ``--save-detailed``; None where a request has no such figure."""
    return {
        "input_lens": [record.num_prompt_tokens for record in records],
        "output_lens": [record.num_output_tokens for record in records],
        "ttfts": [record.ttft_s for record in records],
        "itls": [record.itl_s for record in records],
        "start_times": [record.arrival_s for record in records],
        "errors": [record.error or "" for record in records],
    }


def banner(result: Mapping[str, Any], *, metrics: Sequence[str], percentiles: Sequence[float]) -> str:
    """The screen."""
    lines = [f"{' Serving Benchmark Result ':=^{WIDTH}}"]
    lines += [_line(text, result[key]) for text, key in _LINES if result.get(key) is not None]
    for metric in metrics:
        lines.append(f"{METRICS[metric]:-^{WIDTH}}")
        name = metric.upper()
        lines += [_line(f"{word.title()} {name} (ms)", result[f"{word}_{metric}_ms"]) for word in ("mean", "median")]
        lines += [_line(f"P{each:g} {name} (ms)", result[f"p{each:g}_{metric}_ms"]) for each in percentiles]
    drift = result.get("drift")
    if drift is not None:
        lines.append(f"{'Drift of the sender':-^{WIDTH}}")
        lines += [_line(f"{word.title()} (ms)", drift[f"{word}_ms"]) for word in ("mean", "p99", "max")]
    return "\n".join([*lines, "=" * WIDTH])


def _line(text: str, value: Any) -> str:
    shown = "-" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)
    return f"{text + ':':<{WIDTH - 10}}{shown:<10}".rstrip()


def serving_result(
    summary: Summary, *, backend: str, model: str, rate: float, burstiness: float, max_concurrency: int | None
) -> dict[str, Any]:
    """vLLM's keys in vLLM's order, then ours."""
    head = {
        "backend": backend,
        "label": None,
        "model_id": model,
        "tokenizer_id": model,
        "num_prompts": summary["num_prompts"],
        "request_rate": rate_text(rate),
        "burstiness": burstiness,
        "max_concurrency": max_concurrency,
    }
    return {**head, **summary}
