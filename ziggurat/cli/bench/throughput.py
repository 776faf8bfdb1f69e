# SPDX-License-Identifier: Apache-2.0
"""``ziggurat bench throughput``: all requests at once, by vLLM's keys."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ziggurat.cli.bench.report import machine_facts
from ziggurat.cli.bench.requests import WorkloadOptions
from ziggurat.cli.bench.target import Target, add_engine_flags, open_target
from ziggurat.cli.flags import Parser, add_flags, build, flags_of
from ziggurat.cli.interrupt import raise_interrupts
from ziggurat.cli.output import add_output_flags, emit
from ziggurat.workload.arrivals import at_rate
from ziggurat.workload.metrics import summarize
from ziggurat.workload.replay import replay
from ziggurat.workload.sources import OpenLoop


def parser() -> Parser:
    """Its flags."""
    parser = Parser("ziggurat bench throughput", "Send all requests at once and measure how fast they are done.")
    add_engine_flags(parser)
    add_flags(parser, [flag for flag in flags_of(WorkloadOptions) if flag.field != "burstiness"])
    add_output_flags(parser)
    return parser


def run(argv: Sequence[str]) -> int:
    """Measure and print.

    Raises:
        UserError: a setting or the model.
    """
    namespace = parser().parse(argv)
    workload = build(WorkloadOptions, namespace)
    with raise_interrupts(), open_target(namespace, num_requests=workload.num_prompts) as target:
        result = measure(target, workload)
    result |= machine_facts(" ".join(["ziggurat bench throughput", *argv]))
    emit(namespace, result, lambda: as_text(result))
    return 0


def measure(target: Target, workload: WorkloadOptions) -> dict[str, Any]:
    """One warm-up request, then everything."""
    arrivals = at_rate(workload.arrivals(target.max_model_len), math.inf)
    replay(OpenLoop(arrivals[:1]), target.client(run=0))
    summary = summarize(replay(OpenLoop(arrivals), target.client(run=1)).records)
    return {
        "elapsed_time": summary["duration"],
        "num_requests": summary["completed"],
        "num_failed": summary["failed"],
        "total_num_tokens": (summary["total_input_tokens"] or 0) + (summary["total_output_tokens"] or 0),
        "requests_per_second": summary["request_throughput"],
        "tokens_per_second": summary["total_token_throughput"],
        "output_tokens_per_second": summary["output_throughput"],
        "model_id": target.model,
    }


def as_text(result: dict[str, Any]) -> str:
    """vLLM's line."""
    rates = [result[name] or 0.0 for name in ("requests_per_second", "tokens_per_second", "output_tokens_per_second")]
    return "Throughput: {:.2f} requests/s, {:.2f} total tokens/s, {:.2f} output tokens/s".format(*rates)
