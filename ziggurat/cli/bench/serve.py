# SPDX-License-Identifier: Apache-2.0
"""``ziggurat bench serve``: requests at a rate or from clients that wait, against an engine in this process or a server."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ziggurat.cli.bench.report import METRICS, banner, details, machine_facts, serving_result
from ziggurat.cli.bench.requests import WorkloadOptions
from ziggurat.cli.bench.target import Target, add_target_flags, open_target
from ziggurat.cli.flags import Parser, add_flags, build, flags_of
from ziggurat.cli.interrupt import raise_interrupts
from ziggurat.cli.output import add_output_flags, emit
from ziggurat.engine.config import option
from ziggurat.errors import ConfigError
from ziggurat.registry import nearest
from ziggurat.workload.arrivals import at_rate
from ziggurat.workload.metrics import GOODPUT_METRICS, summarize
from ziggurat.workload.records import Arrival
from ziggurat.workload.replay import Replayed, replay
from ziggurat.workload.sources import Capped, ClosedLoop, Conversation, OpenLoop, Source


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """How requests are sent and what is reported, by vLLM's names.

    Raises:
        ConfigError: a value is out of range or a name is unknown.
    """

    request_rate: float = option(math.inf, "requests per second; inf sends all at once", group="load")
    max_concurrency: int | None = option(None, "most requests open at once", group="load")
    num_clients: int | None = option(
        None, "closed loop: this many clients, each waits for its answer before it goes on", group="load"
    )
    num_turns: int = option(1, "turns per conversation of a client; each repeats all before it", group="load")
    num_warmups: int = option(1, "requests before the measurement", group="load")
    goodput: str | None = option(None, "limits in ms, for example 'ttft:200 tpot:50'", group="report")
    percentile_metrics: str = option("ttft,tpot,itl,e2el", "metrics with percentiles on the screen", group="report")
    metric_percentiles: str = option("99", "percentiles, for example '50,99'", group="report")
    save_detailed: bool = option(False, "every request's figures in the JSON too", group="report")

    def __post_init__(self) -> None:
        if not self.request_rate > 0:
            raise ConfigError(f"request_rate must be above 0 (inf sends all at once), got {self.request_rate}")
        if self.num_clients is not None and (self.request_rate != math.inf or self.max_concurrency is not None):
            raise ConfigError("--num-clients is a closed loop: it takes no --request-rate and no --max-concurrency")
        if self.num_turns < 1 or (self.num_turns > 1 and self.num_clients is None):
            raise ConfigError(f"--num-turns {self.num_turns} needs --num-clients and at least one turn")
        self.limits(), self.metrics(), self.percentiles()

    def limits(self) -> dict[str, float]:
        """Goodput limits in ms by metric."""
        limits: dict[str, float] = {}
        for word in (self.goodput or "").replace(",", " ").split():
            name, _, text = word.partition(":")
            if name not in GOODPUT_METRICS:
                hint = nearest(name, list(GOODPUT_METRICS))
                raise ConfigError(f"unknown goodput metric {name!r}{hint or '.'} Known: {', '.join(GOODPUT_METRICS)}")
            limits[name] = _number(text, f"--goodput {word}", least=0)
            if not limits[name]:
                raise ConfigError(f"--goodput {word}: a limit must be above 0 ms, nobody could meet it")
        return limits

    def metrics(self) -> list[str]:
        """Metrics on the screen."""
        names = [name.strip() for name in self.percentile_metrics.split(",") if name.strip()]
        for name in names:
            if name not in METRICS:
                raise ConfigError(
                    f"unknown metric {name!r}{nearest(name, list(METRICS)) or '.'} Known: {', '.join(METRICS)}"
                )
        return names

    def percentiles(self) -> list[float]:
        """Percentiles that are computed; the 99th always is."""
        given = [_number(text, "--metric-percentiles", most=100) for text in self.metric_percentiles.split(",")]
        return sorted({99.0, *given})


def _number(text: str, flag: str, *, least: float = 0, most: float = math.inf) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not least <= value <= most:
        raise ConfigError(f"{flag}: {text!r} is not a number from {least:g} to {most:g}")
    return value


def parser() -> Parser:
    """Its flags."""
    parser = Parser("ziggurat bench serve", "Measure latencies and throughput under load.")
    add_target_flags(parser)
    add_flags(parser, flags_of(WorkloadOptions))
    add_flags(parser, flags_of(ServeOptions))
    add_output_flags(parser)
    return parser


def run(argv: Sequence[str]) -> int:
    """Measure and print.

    Raises:
        UserError: a setting, the model or the server.
    """
    namespace = parser().parse(argv)
    workload, options = build(WorkloadOptions, namespace), build(ServeOptions, namespace)
    with raise_interrupts(), open_target(namespace, num_requests=workload.num_prompts) as target:
        found = measure(target, workload, options)
        result = as_json(found, target, workload, options)
    result |= machine_facts(" ".join(["ziggurat bench serve", *argv]))
    emit(
        namespace,
        result,
        lambda: banner(result, metrics=options.metrics(), percentiles=options.percentiles()),
    )
    return 0


def measure(target: Target, workload: WorkloadOptions, options: ServeOptions) -> Replayed:
    """Warm up, then replay."""
    arrivals = workload.arrivals(target.max_model_len)
    if options.num_warmups:
        warm = at_rate(arrivals[: options.num_warmups], math.inf)
        replay(OpenLoop(warm), target.client(run=0))
    return replay(source_of(arrivals, workload, options, vocab_size=target.vocab_size), target.client(run=1))


def source_of(
    arrivals: Sequence[Arrival], workload: WorkloadOptions, options: ServeOptions, *, vocab_size: int = 256
) -> Source:
    """An open loop (a trace keeps its own times unless a rate is given; with a limit, requests wait), or clients that wait."""
    if options.num_clients is not None:
        turns = options.num_turns
        conversations = [
            Conversation(
                id=f"c{first // turns}",
                turns=tuple((each.prompt_len, each.max_new) for each in arrivals[first : first + turns]),
            )
            for first in range(0, len(arrivals), turns)
        ]
        return ClosedLoop(conversations, options.num_clients, vocab_size=vocab_size)
    keeps_times = workload.dataset_path is not None and options.request_rate == math.inf
    source: Source = OpenLoop(list(arrivals) if keeps_times else at_rate(arrivals, options.request_rate))
    return source if options.max_concurrency is None else Capped(source, options.max_concurrency)


def as_json(found: Replayed, target: Target, workload: WorkloadOptions, options: ServeOptions) -> dict[str, Any]:
    """The figures by vLLM's keys, and the sender's drift."""
    summary = summarize(found.records, goodput=options.limits() or None, percentiles=options.percentiles())
    result = serving_result(
        summary,
        backend=target.backend,
        model=target.model,
        rate=options.request_rate,
        burstiness=workload.burstiness,
        max_concurrency=options.max_concurrency,
    )
    result["drift"] = found.drift.as_dict()
    return {**result, **details(found.records)} if options.save_detailed else result
