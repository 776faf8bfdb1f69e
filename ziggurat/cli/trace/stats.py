# SPDX-License-Identifier: Apache-2.0
"""``ziggurat trace stats FILE``: what a trace is like. The keys of ``--format json`` are in docs/traces.md and do not change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ziggurat.cli.flags import Parser, add_flags, build, flags_of
from ziggurat.cli.output import add_output_flags, emit, table
from ziggurat.cli.trace.source import about, add_source, open_source
from ziggurat.engine.config import option


@dataclass(frozen=True, slots=True, kw_only=True)
class StatsOptions:
    """What is computed beside the plain figures."""

    window_s: float = option(300.0, "burstiness is measured inside windows of this length", group="figures")
    block_size: int = option(512, "tokens per block in which shared beginnings are counted", group="figures")
    fit: bool = option(
        False, "fit a gamma distribution to the gaps of every window, and test each fit", group="figures"
    )
    num_resamples: int = option(99, "samples per window of the test (parametric bootstrap)", group="figures")
    seed: int = option(0, "of the test, and of the places of equal times inside a tick of the clock", group="figures")


def parser() -> Parser:
    """Its flags."""
    parser = Parser("ziggurat trace stats", "Say what a trace is like.")
    add_source(parser)
    add_flags(parser, flags_of(StatsOptions))
    add_output_flags(parser)
    return parser


def run(argv: Sequence[str]) -> int:
    """Read once and print.

    Raises:
        ConfigError: a setting, or a file that is not a trace; says the row.
    """
    namespace = parser().parse(argv)
    from ziggurat.workload.arrival_windows import fit_series
    from ziggurat.workload.failures import FailureModel
    from ziggurat.workload.traces.stats import TraceSummary

    options = build(StatsOptions, namespace)
    reader = open_source(namespace)
    summary = TraceSummary(block_tokens=options.block_size).add_all(reader)
    num_failed = len(reader.counts.failed_s)
    failures = FailureModel.fit(num_answered=reader.counts.num_requests, num_failed=num_failed)
    data = {**about(reader), "failure_ratio": failures.share, **summary.as_dict(window_s=options.window_s)}
    if options.fit:
        series = fit_series(
            summary.times_s,
            options.window_s,
            failed_s=reader.counts.failed_s,
            seed=options.seed,
            num_resamples=options.num_resamples,
        )
        data["arrival_fit"] = series.as_dict()
    emit(namespace, data, lambda: as_text(data, reader.counts.as_text()))
    return 0


def as_text(data: dict[str, Any], books: str) -> str:
    """The same for people."""
    windows = data["windows"]
    times = "" if data["has_times"] else "; the file has no times, these are assigned"
    lines = [
        f"{data['file']}: {data['trace_format']}",
        books,
        f"{data['duration_s']:,.1f} s, {number(data['request_rate_per_s'])} requests/s, CV of all gaps {number(data['gap_cv'])}{times}",
        f"in {windows['num_windows']:,} windows of {windows['window_s']:g} s ({windows['num_empty']:,} empty): "
        f"{span(windows['rate_per_s'])} requests/s, CV of gaps {span(windows['gap_cv'])}",
        "",
        table(spread_rows(data), right=range(1, 10)),
        "",
        sessions_line(data["sessions"]),
        prefix_line(data["prefix"]),
    ]
    if len(data["services"]) > 1:
        rows = [["model", "log type", "requests", "mean prompt", "mean output"]]
        for each in data["services"]:
            means = (f"{each[key]['mean']:,.4g}" for key in ("prompt_tokens", "output_tokens"))
            rows.append([each["model"], each["log_type"], f"{each['num_requests']:,}", *means])
        lines += ["", table(rows, right=(2, 3, 4))]
    return "\n".join([*lines, *fit_lines(data.get("arrival_fit"))])


def number(value: float | None) -> str:
    """Four digits, or a dash."""
    return "-" if value is None else f"{value:,.4g}"


def span(found: dict[str, Any]) -> str:
    """``0.98 (0.9 to 1.2)``: median and range."""
    return "-" if not found["count"] else f"{number(found['p50'])} ({number(found['min'])} to {number(found['max'])})"


def spread_rows(data: dict[str, Any]) -> list[list[str]]:
    """A row per kind of figure; what the trace does not have is left out."""
    columns = ("mean", "min", "p50", "p80", "p90", "p95", "p99", "max")
    named = [
        ("prompt tokens", data["prompt_tokens"]),
        ("output tokens", data["output_tokens"]),
        ("elapsed s", data["elapsed_s"]),
        ("requests per session", data["sessions"]["requests_per_session"]),
    ]
    rows = [["", "total", *columns]]
    for name, found in named:
        if found["count"]:
            rows.append([name, f"{found['total']:,.0f}", *(f"{found[column]:,.4g}" for column in columns)])
    return rows


def sessions_line(sessions: dict[str, Any]) -> str:
    """How many there are."""
    return f"{sessions['num_sessions']:,} sessions; {sessions['num_requests_outside']:,} requests belong to none"


def prefix_line(prefix: dict[str, Any]) -> str:
    """What is shared, and how that is known."""
    how = {
        "none": "nothing is known of shared beginnings",
        "session": "known from sessions only, if every turn repeats all before it",
    }.get(prefix["source"], f"known from {prefix['source'].replace('_', ' ')}")
    if not prefix["num_blocks"]:
        return how
    return (
        f"{prefix['num_blocks']:,} blocks of {prefix['block_size_tokens']} tokens, {prefix['repeated_ratio']:.1%} of them seen before "
        f"({how})"
    )


def fit_lines(fit: dict[str, Any] | None) -> list[str]:
    """The fit, in short; the series is in the JSON."""
    if fit is None:
        return []
    methods = ", ".join(f"{count:,} {method}" for method, count in fit["num_by_method"].items())
    skipped = fit["num_by_method"].get("all failed", 0)
    lines = [
        "",
        f"gamma fits per window: {methods}; {fit['num_rejected']:,} of {fit['num_tested']:,} tested fits are refused at {fit['level']:g}",
    ]
    if fit["resolution_s"]:
        lines.append(f"equal times were spread inside ticks of {fit['resolution_s']:g} s")
    if skipped:
        lines.append(f"warning: {skipped:,} windows hold failed requests only and have no parameters")
    return lines
