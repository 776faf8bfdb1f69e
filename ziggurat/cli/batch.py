# SPDX-License-Identifier: Apache-2.0
"""``ziggurat batch INPUT -o OUTPUT``: run a file of requests offline, as fast as the machine allows."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ziggurat.cli.engine_flags import engine_flags
from ziggurat.cli.flags import Flag, Parser, UsageError, add_flags, build, flags_of
from ziggurat.cli.interrupt import raise_interrupts
from ziggurat.cli.model_argument import add_model_flag, model_of
from ziggurat.cli.progress import ProgressLine, show_steps
from ziggurat.engine.config import EngineConfig, option
from ziggurat.errors import ConfigError

if TYPE_CHECKING:
    from ziggurat.engine.job import JobReport
    from ziggurat.server.batch.run import BatchJob, BatchProgress

# A job feeds the engine as it empties, in an order of its own.
_NOT_HERE = ("served_model_name", "max_queued_requests", "scheduling_policy", "enable_prefix_caching")
PLANNER = "memory-centric"


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchOptions:
    """Where answers go, and what is known about them."""

    output: Path | None = option(None, "write the answers to this file, in the order of the input", group="batch")
    overwrite: bool = option(False, "replace OUTPUT, and forget what an earlier run of the job has done", group="batch")
    expected_output_tokens: int | None = option(
        None, "how long texts are on average, if you know better than their max_tokens", group="batch"
    )
    format: str = option("text", "of the summary", choices=("text", "json"), group="batch")


def parser() -> Parser:
    """Its flags."""
    parser = Parser(
        "ziggurat batch",
        "Run a file of requests (OpenAI's batch format, JSON lines) and write the answers in its order. Requests that share a beginning "
        "run together, and memory, not a number of requests, bounds what runs at once. Killed, the same command goes on where it was.",
    )
    parser.add_argument("input", metavar="INPUT", type=Path, help="file with one request per line")
    add_model_flag(parser)
    add_flags(parser, flags_of(BatchOptions), short={"output": "-o"})
    add_flags(parser, _flags())
    return parser


def _flags() -> list[Flag]:
    return engine_flags(without=_NOT_HERE)


def run(argv: Sequence[str]) -> int:
    """Run the job and print what sharing brought.

    Raises:
        UsageError: no output was named.
        UserError: the input, the output, a setting or the model.
    """
    namespace = parser().parse(argv)
    options = build(BatchOptions, namespace)
    if options.output is None:
        raise UsageError("name the file for the answers: ziggurat batch INPUT -o OUTPUT")
    from ziggurat.server.batch.lines import BatchFile

    file = BatchFile(namespace.input)
    _check_output(options.output, namespace.input, overwrite=options.overwrite)
    if options.expected_output_tokens is not None and options.expected_output_tokens < 1:
        raise ConfigError(f"expected_output_tokens must be at least 1, got {options.expected_output_tokens}")
    from ziggurat.engine.engine import Engine  # torch: after everything that can be wrong without it
    from ziggurat.server.batch.run import BatchJob, journal_path

    with contextlib.ExitStack() as stack:
        engine = stack.enter_context(Engine.load(engine_config(namespace), progress=ProgressLine()))
        if options.overwrite:
            journal_path(options.output).unlink(missing_ok=True)
        job = BatchJob(engine, file, options.output, expected_tokens=options.expected_output_tokens)
        stack.enter_context(job)
        stack.enter_context(raise_interrupts())
        if job.num_resumed:
            print(f"going on: {job.num_resumed} of {len(file.lines)} requests are done", file=sys.stderr)
        report = job.run(_show)
    show_steps(0, 0, "")
    result = summary(job, report, len(file.lines), options.output)
    print(as_json(result) if options.format == "json" else as_text(result))
    return 0


def engine_config(namespace: argparse.Namespace) -> EngineConfig:
    """The engine for a job: its planner, unless another one was asked for."""
    given = {flag.field: getattr(namespace, flag.field) for flag in _flags() if hasattr(namespace, flag.field)}
    given.setdefault("planner", PLANNER)
    return build(EngineConfig, argparse.Namespace(**given), model=model_of(namespace))


def _check_output(output: Path, source: Path, *, overwrite: bool) -> None:
    if output.exists() and os.path.samefile(output, source):
        raise UsageError(f"{output} is the input; name another file for the answers")
    if output.exists() and not overwrite:
        raise ConfigError(f"{output} is there already; name another file, or give --overwrite to replace it")


def _show(progress: BatchProgress) -> None:
    failed = f", {progress.num_failed} refused or failed" if progress.num_failed else ""
    left = "" if progress.eta_s is None else f", {progress.eta_s:.0f} s left"
    show_steps(progress.num_done, progress.num_lines, f"requests{failed}{left}")


def summary(job: BatchJob, report: JobReport, num_requests: int, output: Path) -> dict[str, Any]:
    """What was done, and what sharing brought. Units are in the names; ratios are of prompt tokens."""
    plan, elapsed_s = report.plan, report.elapsed_s
    return {
        "output": str(output),
        "num_requests": num_requests,
        "num_resumed": job.num_resumed,
        "num_failed": job.num_failed,
        "num_groups": sum(len(group.members) > 1 for group in plan.groups),
        "prompt_tokens": plan.prompt_tokens,
        "planned_saving_ratio": plan.saved_tokens / max(plan.prompt_tokens, 1),
        "multi_level_saving_ratio": plan.multi_level_tokens / max(plan.prompt_tokens, 1),
        "saving_ratio": 1 - report.computed_prompt_tokens / max(report.prompt_tokens, 1),
        "output_tokens": report.output_tokens,
        "planning_s": round(report.planning_s, 4),
        "elapsed_s": round(elapsed_s, 3),
        "output_tokens_per_second": round(report.output_tokens / elapsed_s, 2) if elapsed_s else None,
        "total_tokens_per_second": round((report.prompt_tokens + report.output_tokens) / elapsed_s, 2)
        if elapsed_s
        else None,
    }


def as_json(result: dict[str, Any]) -> str:
    """One object."""
    import json

    return json.dumps(result, indent=2)


def as_text(result: dict[str, Any]) -> str:
    """For people."""
    rate = result["output_tokens_per_second"] or 0.0
    return (
        f"wrote {result['output']}: {result['num_requests']} requests, {result['num_failed']} refused or failed, "
        f"{result['num_resumed']} done before\n"
        f"{result['num_groups']} groups share beginnings: {result['saving_ratio']:.1%} of the prompt tokens were not computed again "
        f"({result['planned_saving_ratio']:.1%} planned, {result['multi_level_saving_ratio']:.1%} if every level were shared)\n"
        f"{result['output_tokens']} tokens in {result['elapsed_s']:.1f} s: {rate:.1f} tokens/s; planned in {result['planning_s']:.2f} s"
    )
