# SPDX-License-Identifier: Apache-2.0
"""``ziggurat bench latency``: one batch from its first prompt token to its last output token, repeated; by vLLM's keys."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ziggurat.cli.bench.report import machine_facts
from ziggurat.cli.bench.target import Target, add_engine_flags, open_target
from ziggurat.cli.flags import Parser, add_flags, build, flags_of
from ziggurat.cli.interrupt import raise_interrupts
from ziggurat.cli.output import add_output_flags, emit
from ziggurat.engine.config import option
from ziggurat.errors import ConfigError
from ziggurat.workload.metrics import percentile, summarize
from ziggurat.workload.records import Arrival
from ziggurat.workload.replay import replay
from ziggurat.workload.sources import OpenLoop

_PERCENTILES = (10, 25, 50, 75, 90, 99)


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyOptions:
    """The batch, by vLLM's names.

    Raises:
        ConfigError: a value is out of range.
    """

    input_len: int = option(32, "prompt tokens per sequence", group="batch")
    output_len: int = option(128, "output tokens per sequence", group="batch")
    batch_size: int = option(8, "sequences", group="batch")
    num_iters_warmup: int = option(2, "batches before the measurement", group="batch")
    num_iters: int = option(5, "measured batches", group="batch")

    def __post_init__(self) -> None:
        for name in ("input_len", "output_len", "batch_size", "num_iters"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")


def parser() -> Parser:
    """Its flags."""
    parser = Parser("ziggurat bench latency", "Measure the seconds that one batch takes.")
    add_engine_flags(parser)
    add_flags(parser, flags_of(LatencyOptions))
    add_output_flags(parser)
    return parser


def run(argv: Sequence[str]) -> int:
    """Measure and print.

    Raises:
        UserError: a setting or the model.
    """
    namespace = parser().parse(argv)
    options = build(LatencyOptions, namespace)
    with raise_interrupts(), open_target(namespace, num_requests=options.batch_size) as target:
        result = measure(target, options)
    result |= machine_facts(" ".join(["ziggurat bench latency", *argv]))
    emit(namespace, result, lambda: as_text(result))
    return 0


def measure(target: Target, options: LatencyOptions) -> dict[str, Any]:
    """Warm-up batches, then measured ones.

    Raises:
        ConfigError: a sequence was refused or failed; says why.
    """
    latencies_s = []
    for number in range(options.num_iters_warmup + options.num_iters):
        batch = [
            Arrival(t_s=0.0, id=f"b{number}-{index}", prompt_len=options.input_len, max_new=options.output_len)
            for index in range(options.batch_size)
        ]
        records = replay(OpenLoop(batch), target.client(run=number)).records
        failed = [record for record in records if not record.is_success]
        if failed:
            raise ConfigError(f"{len(failed)} of {len(batch)} sequences failed: {failed[0].error}")
        duration_s = summarize(records)["duration"]
        assert duration_s is not None
        latencies_s.append(duration_s)
    latencies_s = latencies_s[options.num_iters_warmup :]
    return {
        "avg_latency": statistics.fmean(latencies_s),
        "latencies": latencies_s,
        "percentiles": {str(each): percentile(latencies_s, each) for each in _PERCENTILES},
        "model_id": target.model,
    }


def as_text(result: dict[str, Any]) -> str:
    """vLLM's lines."""
    lines = [f"Avg latency: {result['avg_latency']:.4f} seconds"]
    lines += [f"{each}% percentile latency: {value:.4f} seconds" for each, value in result["percentiles"].items()]
    return "\n".join(lines)
