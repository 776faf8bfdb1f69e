# SPDX-License-Identifier: Apache-2.0
"""``ziggurat quantize MODEL -o FILE``: a model in fewer bits, which `serve` takes as it is, and what that did to its weights."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ziggurat.cli.flags import Parser, UsageError, add_flags, build, flags_of
from ziggurat.cli.model_argument import add_model, model_of
from ziggurat.cli.output import emit, table
from ziggurat.cli.progress import ProgressLine
from ziggurat.engine.config import EngineConfig
from ziggurat.engine.gguf.options import QuantizeOptions
from ziggurat.errors import ConfigError
from ziggurat.units import format_bytes

if TYPE_CHECKING:
    from ziggurat.engine.gguf.export import Exported

NUM_WORST = 5


def parser() -> Parser:
    """Its flags."""
    parser = Parser(
        "ziggurat quantize",
        "Write a model folder as one GGUF file with its matrices in 8 or 4 bits, rounded to nearest. `ziggurat serve FILE` computes with "
        "them as they are stored; `ziggurat bench quality` says what they cost in quality.",
    )
    add_model(parser)
    add_flags(parser, flags_of(QuantizeOptions), short={"output": "-o"})
    return parser


def run(argv: Sequence[str]) -> int:
    """Write the file and print the report.

    Raises:
        UsageError: no file was named.
        UserError: the model cannot be read or has no counterpart in GGUF; the file is there already or cannot be written.
    """
    namespace = parser().parse(argv)
    options = build(QuantizeOptions, namespace)
    if options.output is None:
        raise UsageError("name the file to write: ziggurat quantize MODEL -o FILE")
    if options.output.exists() and not options.overwrite:
        raise ConfigError(f"{options.output} is there already; name another file, or give --overwrite to replace it")
    from ziggurat.engine.gguf.export import export_gguf
    from ziggurat.engine.sizing import open_model

    started_s = time.monotonic()
    model = model_of(namespace)
    source = open_model(EngineConfig(model=model))
    name = Path(model).expanduser().resolve().name
    result = export_gguf(source, options.output, options.spec, name=name, progress=ProgressLine())
    before_bytes = sum(entry.num_bytes for entry in source.tensors.values())
    report = as_json(result, options, before_bytes, time.monotonic() - started_s)
    del namespace.output  # it names the model, not the report
    emit(namespace, report, lambda: as_text(report))
    return 0


def as_json(result: Exported, options: QuantizeOptions, before_bytes: int, elapsed_s: float) -> dict[str, Any]:
    """The report for programs. ``errors`` are relative root mean squares by tensor, worst first."""
    return {
        "path": str(result.path),
        "quantization": options.quantization,
        "num_bytes": result.num_bytes,
        "weight_bytes": result.weight_bytes,
        "weight_bytes_before": before_bytes,
        "bits_per_weight": round(8 * result.weight_bytes / result.num_values, 3),
        "num_tensors": result.num_tensors,
        "num_quantized": len(result.errors),
        "num_fallback_tensors": result.num_fallback,
        "errors": dict(sorted(result.errors.items(), key=lambda item: -item[1])),
        "elapsed_s": round(elapsed_s, 3),
        "notes": list(result.notes),
    }


def as_text(report: dict[str, Any]) -> str:
    """The same for people: sizes, and the tensors that lost most."""
    lines = [
        f"wrote {report['path']}: {format_bytes(report['num_bytes'])}, {report['bits_per_weight']} bits per weight "
        f"({format_bytes(report['weight_bytes_before'])} of weights before, {format_bytes(report['weight_bytes'])} now) "
        f"in {report['elapsed_s']:.1f} s",
        f"{report['num_quantized']} of {report['num_tensors']} tensors in {report['quantization']}; vectors stay f32",
    ]
    if report["num_fallback_tensors"]:
        lines.append(f"{report['num_fallback_tensors']} in f16: their rows are no multiple of a block of 32")
    worst = list(report["errors"].items())[:NUM_WORST]
    if worst:
        rows = [["largest errors", "relative"], *([name, f"{error:.4f}"] for name, error in worst)]
        lines += ["", table(rows, right=[1]), ""]
    lines.append(f"next: ziggurat serve {report['path']}, or ziggurat bench quality for what it costs")
    return "\n".join([*lines, *report["notes"]])
