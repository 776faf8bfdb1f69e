# SPDX-License-Identifier: Apache-2.0
"""``ziggurat simulate SCENARIO.toml``: the server's own scheduler on machines that are not there."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from ziggurat.cli.bench.report import banner
from ziggurat.cli.flags import Parser, add_flags, build, flags_of
from ziggurat.cli.interrupt import raise_interrupts
from ziggurat.cli.output import add_output_flags, emit, table
from ziggurat.cli.progress import show_steps
from ziggurat.engine.config import option
from ziggurat.errors import ConfigError
from ziggurat.simulation.cluster import Cluster, StepSpan
from ziggurat.simulation.report import record_line, simulation_result, timeline_event
from ziggurat.simulation.scenario import Scenario, read_scenario

_EVERY_STEPS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulateOptions:
    """What is written besides the result."""

    records: Path | None = option(None, "write a JSON object per request to this file", group="simulation")
    timeline: Path | None = option(
        None, "write every step as a Chrome trace (Perfetto) to this file", group="simulation"
    )
    decisions: Path | None = option(None, "write every decision of every instance to this file", group="simulation")


def parser() -> Parser:
    """Its flags."""
    parser = Parser(
        "ziggurat simulate",
        "Run the server's own scheduler, planners and KV store on virtual machines: how fast, and what happens to tail latency under "
        "another load. Keys of the scenario: docs/simulate.md.",
    )
    parser.add_argument("scenario", metavar="SCENARIO", type=Path, help="TOML file")
    add_flags(parser, flags_of(SimulateOptions))
    add_output_flags(parser)
    return parser


def run(argv: Sequence[str]) -> int:
    """Simulate and print.

    Raises:
        UserError: the scenario, its trace, or a file that cannot be written.
    """
    namespace = parser().parse(argv)
    options = build(SimulateOptions, namespace)
    scenario = read_scenario(namespace.scenario)
    arrivals = scenario.requests()
    with raise_interrupts(), contextlib.ExitStack() as stack:
        timeline = None if options.timeline is None else _Timeline(_open(stack, options.timeline))
        progress = _Progress(timeline)
        cluster = Cluster(scenario, on_step=progress, logs_decisions=options.decisions is not None)
        records = cluster.run(arrivals)
        show_steps(0, 0, "")
        if timeline is not None:
            timeline.close()
        if options.records is not None:
            out = _open(stack, options.records)
            out.writelines(record_line(record) + "\n" for record in records)
        if options.decisions is not None:
            out = _open(stack, options.decisions)
            for number, log in enumerate(cluster.logs):
                out.writelines(json.dumps({"instance": number, **entry}) + "\n" for entry in log)
    result = simulation_result(scenario, cluster, records)
    emit(namespace, result, lambda: as_text(result, scenario))
    return 0


def as_text(result: dict[str, Any], scenario: Scenario) -> str:
    """The banner of ``bench serve``, and a row per instance, up to a dozen."""
    shown = banner(result, metrics=("ttft", "tpot", "itl", "e2el"), percentiles=(99,))
    rows = [["instance", "requests", "steps", "busy", "preempted"]]
    for each in result["instances"][:12]:
        counts = [str(each[name]) for name in ("instance", "num_requests", "num_steps")]
        rows.append([*counts, f"{each['utilization']:.0%}", str(each["num_preemptions"])])
    where = f"simulated: {scenario.model} on {scenario.instances} x {scenario.layout.tensor_parallel} {scenario.device}"
    return f"{shown}\n{table(rows, right=range(5))}\n{where}"


class _Progress:
    """Counts steps, shows them, and hands them on."""

    def __init__(self, timeline: _Timeline | None) -> None:
        self._timeline, self._count = timeline, 0

    def __call__(self, span: StepSpan) -> None:
        self._count += 1
        if self._timeline is not None:
            self._timeline.add(span)
        if self._count % _EVERY_STEPS == 0:
            show_steps(self._count, self._count, f"steps, {span.end_ns / 1e9:.1f} s of virtual time")


class _Timeline:
    """A Chrome trace, written as it comes."""

    def __init__(self, out: TextIO) -> None:
        self._out, self._is_first = out, True
        out.write("[")

    def add(self, span: StepSpan) -> None:
        self._out.write(("\n" if self._is_first else ",\n") + json.dumps(timeline_event(span)))
        self._is_first = False

    def close(self) -> None:
        self._out.write("\n]\n")


def _open(stack: contextlib.ExitStack, path: Path) -> TextIO:
    try:
        return stack.enter_context(path.open("w", encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from None
