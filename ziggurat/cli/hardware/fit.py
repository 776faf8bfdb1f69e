# SPDX-License-Identifier: Apache-2.0
"""``ziggurat hardware fit``: cost models fitted to measured files, judged on other files. docs/hardware.md has the columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ziggurat.cli.flags import Parser, add_flags, build, flags_of
from ziggurat.cli.output import add_output_flags, emit, table
from ziggurat.engine.config import option
from ziggurat.errors import ConfigError
from ziggurat.hardware.samples import KINDS

_ERRORS = ("mape", "median_error", "p95_error", "bias", "interval80_coverage", "interval80_halfwidth")


@dataclass(frozen=True, slots=True, kw_only=True)
class FitOptions:
    """How it is fitted.

    Raises:
        ConfigError: a value is out of range.
    """

    kind: str = option("gemm", "what the files measured", choices=KINDS, group="files")
    samples_per_device: int | None = option(
        None, "draw this many training samples per device and class of operators (default: all)", group="fit"
    )
    seed: int = option(0, "of the drawing and of the trees", group="fit")

    def __post_init__(self) -> None:
        if self.samples_per_device is not None and self.samples_per_device < 1:
            raise ConfigError(f"samples_per_device must be at least 1, got {self.samples_per_device}")
        if self.seed < 0:
            raise ConfigError(f"seed must be at least 0, got {self.seed}")


def parser() -> Parser:
    """Its flags."""
    parser = Parser("ziggurat hardware fit", "Fit cost models to measured files and judge them on others.")
    parser.add_argument("--train", metavar="FILE", nargs="+", type=Path, required=True, help="files to fit")
    parser.add_argument("--test", metavar="FILE", nargs="+", type=Path, required=True, help="files to judge on")
    add_flags(parser, flags_of(FitOptions))
    add_output_flags(parser)
    return parser


def run(argv: Sequence[str]) -> int:
    """Fit and print.

    Raises:
        ConfigError: a file cannot be read or is of another kind; a setting.
    """
    namespace = parser().parse(argv)
    options = build(FitOptions, namespace)
    from ziggurat.hardware.report import evaluate
    from ziggurat.hardware.samples import read_samples

    train = [sample for path in namespace.train for sample in read_samples(path, options.kind)]
    test = [sample for path in namespace.test for sample in read_samples(path, options.kind)]
    rows = evaluate(train, test, samples_per_device=options.samples_per_device, seed=options.seed)
    data: dict[str, Any] = {
        "kind": options.kind,
        "train": [str(path) for path in namespace.train],
        "samples_per_device": options.samples_per_device,
        "seed": options.seed,
        "test": rows,
    }
    emit(namespace, data, lambda: as_text(rows))
    return 0


def as_text(rows: Sequence[dict[str, Any]]) -> str:
    """A row per file, class and cost model; errors in percent of the measured time."""
    head = ["file", "device", "class", "cost model", "n", *(name.replace("_", " ") for name in _ERRORS)]
    lines = [head]
    for row in rows:
        device = row["device"] if row["device_seen"] else f"{row['device']} (not fitted)"
        cells = ["-" if row[name] is None else f"{100 * row[name]:.1f}" for name in _ERRORS]
        lines.append([row["file"], device, row["op_class"], row["cost_model"], str(row["n"]), *cells])
    return table(lines, right=range(4, len(head))) + "\n\nErrors in percent of the measured time."
