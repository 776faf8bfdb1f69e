# SPDX-License-Identifier: Apache-2.0
"""``ziggurat reproduce SLUG``: re-run the claims of one system."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ziggurat.catalog.claims import SCALES, Scale, report
from ziggurat.catalog.experiments import find_experiment
from ziggurat.catalog.machine import commit, describe_machine
from ziggurat.catalog.results import RESULTS, ROOT, result_path
from ziggurat.catalog.systems import find_system
from ziggurat.cli.flags import Parser, add_flags, build, flags_of
from ziggurat.cli.interrupt import raise_interrupts
from ziggurat.cli.output import add_output_flags, emit, table
from ziggurat.engine.config import option
from ziggurat.errors import ConfigError, UnsupportedFeature


@dataclass(frozen=True, slots=True, kw_only=True)
class ReproduceOptions:
    """What to run and whether to keep the result."""

    scale: Scale = option("quick", "quick ends within three minutes on two cores", choices=SCALES, group="run")
    record: bool = option(False, "also keep the result in results/, from which the status follows", group="run")


def parser() -> Parser:
    """Its flags."""
    parser = Parser("ziggurat reproduce", "Re-run the claims of one system and judge them.")
    parser.add_argument("slug", metavar="SLUG", help="a slug of `ziggurat systems`")
    add_flags(parser, flags_of(ReproduceOptions))
    add_output_flags(parser)
    return parser


def run(argv: Sequence[str]) -> int:
    """Run the experiment and print its claims.

    Raises:
        ConfigError: no such system.
        UnsupportedFeature: it is not built yet.
    """
    namespace = parser().parse(argv)
    options = build(ReproduceOptions, namespace)
    system = find_system(namespace.slug)
    experiment = find_experiment(system.slug)
    if experiment is None:
        raise UnsupportedFeature(
            f"{system.slug} ({system.title}) is not built yet; see `ziggurat systems`", feature=f"system:{system.slug}"
        )
    with raise_interrupts():  # experiments have files and processes to clean up
        claims = report(experiment, options.scale)
    result = {
        "system": system.slug,
        "scale": options.scale,
        "commit": commit(ROOT),
        "machine": describe_machine(),
        "claims": claims,
    }
    if options.record:
        _record(result, result_path(RESULTS, system.slug, options.scale))
    emit(namespace, result, lambda: as_text(result))
    return 0


def as_text(result: dict[str, Any]) -> str:
    """The claims as a table for people."""
    columns = ("paper", "ours", "unit", "kind", "target", "verdict")
    lines = [["claim", *columns]]
    lines += [[claim["name"], *(_cell(claim[key]) for key in columns)] for claim in result["claims"]]
    notes = [f"{claim['name']}: {claim['note']}" for claim in result["claims"] if claim["note"]]
    head = f"{result['system']}, {result['scale']} run, commit {result['commit'][:12]}, {result['machine']['cpu']}"
    return "\n".join([head, "", table(lines), *(["", *notes] if notes else [])])


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _record(result: dict[str, Any], path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot keep the result in {path}: {error.strerror}") from error
    print(f"wrote {path}", file=sys.stderr)
