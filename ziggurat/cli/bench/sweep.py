# SPDX-License-Identifier: Apache-2.0
"""``ziggurat bench sweep``: the highest request rate that meets a target, by bisection with common random numbers."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ziggurat.cli.bench.report import machine_facts
from ziggurat.cli.bench.requests import WorkloadOptions
from ziggurat.cli.bench.target import Target, add_target_flags, open_target
from ziggurat.cli.flags import Parser, add_flags, build, flags_of
from ziggurat.cli.interrupt import raise_interrupts
from ziggurat.cli.output import add_output_flags, emit, table
from ziggurat.engine.config import option
from ziggurat.errors import ConfigError
from ziggurat.workload.arrivals import at_rate
from ziggurat.workload.capacity import GRANULARITY, Capacity, refine_capacity, search_capacity
from ziggurat.workload.metrics import Attainment, attainment
from ziggurat.workload.replay import replay
from ziggurat.workload.sources import OpenLoop


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepOptions:
    """The target and the search.

    Raises:
        ConfigError: a value is out of range or a target cannot be read.
    """

    target: tuple[str, ...] = option(
        ("p99_itl_ms=200", "median_queue_ms=2000"),
        "limit on a figure of `bench serve`; may be given several times (default: p99_itl_ms=200, median_queue_ms=2000)",
        group="search",
    )
    start_rate: float = option(1.0, "requests per second to begin with", group="search")
    granularity: float = option(GRANULARITY, "stop when the gap is this share of the rate", group="search")
    refine: int = option(0, "runs to add around the limit, whose mean is the answer; 16 give about 2 %", group="search")

    def __post_init__(self) -> None:
        if not 0 < self.granularity < 1:
            raise ConfigError(f"granularity must be above 0 and below 1, got {self.granularity}")
        if self.refine < 0:
            raise ConfigError(f"refine must be at least 0 runs, got {self.refine}")
        attainment([], self.limits())

    def limits(self) -> dict[str, float]:
        """Limits by the names of `summarize`."""
        limits = {}
        for text in self.target:
            name, _, value = text.partition("=")
            try:
                limits[name] = float(value)
            except ValueError as error:
                raise ConfigError(f"--target {text!r} must look like p99_itl_ms=200") from error
        return limits


def parser() -> Parser:
    """Its flags."""
    parser = Parser("ziggurat bench sweep", "Search the highest request rate that meets a target.")
    add_target_flags(parser)
    add_flags(parser, flags_of(WorkloadOptions))
    add_flags(parser, flags_of(SweepOptions))
    add_output_flags(parser)
    return parser


def run(argv: Sequence[str]) -> int:
    """Search and print; a line per run on standard error.

    Raises:
        UserError: a setting, the model or the server, or a target that no rate meets.
    """
    namespace = parser().parse(argv)
    workload, options = build(WorkloadOptions, namespace), build(SweepOptions, namespace)
    if workload.dataset_path is not None:
        raise ConfigError("bench sweep changes the rate and a trace has its own: use another --dataset-name")
    with raise_interrupts(), open_target(namespace, num_requests=workload.num_prompts) as target:
        found = search(target, workload, options)
        result = as_json(found, target, workload, options)
    result |= machine_facts(" ".join(["ziggurat bench sweep", *argv]))
    emit(namespace, result, lambda: as_text(found))
    return 0


def search(target: Target, workload: WorkloadOptions, options: SweepOptions) -> Capacity:
    """One warm-up request, then the search; every run has a salt of its own."""
    arrivals = workload.arrivals(target.max_model_len)
    limits = options.limits()
    replay(OpenLoop(at_rate(arrivals[:1], float("inf"))), target.client(run=0))
    number = 0

    def run_at(rate: float) -> Attainment:
        nonlocal number
        number += 1
        found = attainment(replay(OpenLoop(at_rate(arrivals, rate)), target.client(run=number)).records, limits)
        print(f"{rate:.4g} requests/s: {'met' if found.is_met else 'not met'}: {found.explain()}", file=sys.stderr)
        return found

    found = search_capacity(run_at, start_rate=options.start_rate, granularity=options.granularity)
    if options.refine:
        found = refine_capacity(run_at, found, num_runs=options.refine, granularity=options.granularity)
    return found


def as_json(found: Capacity, target: Target, workload: WorkloadOptions, options: SweepOptions) -> dict[str, Any]:
    """The rate and every run."""
    return {
        "backend": target.backend,
        "model_id": target.model,
        "num_prompts": workload.num_prompts,
        "burstiness": workload.burstiness,
        "seed": workload.seed,
        "limits": options.limits(),
        "refine": options.refine,
        "capacity": found.rate,
        "is_bounded": found.is_bounded,
        "runs": [
            {"request_rate": rate, "is_met": each.is_met, "num_failed": each.num_failed, **each.measured}
            for rate, each in found.runs
        ],
    }


def as_text(found: Capacity) -> str:
    """A row per run in order of rate, and the answer."""
    names = list(found.runs[0][1].measured)
    rows = [["requests/s", *names, "failed", "target"]]
    for rate, each in sorted(found.runs, key=lambda run: run[0]):
        values = ["-" if value is None else f"{value:.4g}" for value in each.measured.values()]
        rows.append([f"{rate:.4g}", *values, str(each.num_failed), "met" if each.is_met else "not met"])
    right = list(range(len(names) + 2))
    answer = f"capacity: {found.rate:.4g} requests/s"
    if not found.is_bounded:
        answer += " or more: every rate met the target, take more requests"
    return f"{table(rows, right=right)}\n\n{answer}"
