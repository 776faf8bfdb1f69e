# SPDX-License-Identifier: Apache-2.0
"""``ziggurat export MODEL --gguf FILE``: a model folder as a file that other engines read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ziggurat.cli.flags import Parser, UsageError, add_flags, build, flags_of
from ziggurat.cli.model_argument import add_model, model_of
from ziggurat.cli.output import add_output_flags, emit
from ziggurat.cli.progress import ProgressLine
from ziggurat.engine.config import EngineConfig
from ziggurat.engine.gguf.options import ExportOptions
from ziggurat.units import format_bytes

if TYPE_CHECKING:
    from ziggurat.engine.gguf.export import Exported


def parser() -> Parser:
    """Its flags."""
    parser = Parser("ziggurat export", "Write a model as GGUF: weights, configuration, tokenizer and chat template.")
    add_model(parser)
    add_flags(parser, flags_of(ExportOptions))
    add_output_flags(parser)
    return parser


def run(argv: Sequence[str]) -> int:
    """Write the file.

    Raises:
        UsageError: no file was named.
        UserError: the model cannot be read or has no counterpart in GGUF; the file cannot be written.
    """
    namespace = parser().parse(argv)
    options = build(ExportOptions, namespace)
    if options.gguf is None:
        raise UsageError("name the file to write: ziggurat export MODEL --gguf FILE")
    from ziggurat.engine.gguf.export import export_gguf
    from ziggurat.engine.sizing import open_model

    model = model_of(namespace)
    source = open_model(EngineConfig(model=model))
    # A repository's folder in the cache is called by a hash.
    name = Path(model).expanduser().resolve().name
    result = export_gguf(source, options.gguf, options.spec, name=name, progress=ProgressLine())
    emit(namespace, as_json(result, options), lambda: as_text(result, options))
    return 0


def as_json(result: Exported, options: ExportOptions) -> dict[str, Any]:
    """The result for programs."""
    return {
        "path": str(result.path),
        "type": options.type,
        "num_bytes": result.num_bytes,
        "num_tensors": result.num_tensors,
        "num_fallback_tensors": result.num_fallback,
        "notes": list(result.notes),
    }


def as_text(result: Exported, options: ExportOptions) -> str:
    """The same for people."""
    lines = [f"wrote {result.path}: {format_bytes(result.num_bytes)}, {result.num_tensors} tensors, {options.type}"]
    if result.num_fallback:
        lines.append(f"{result.num_fallback} of them in f16: their rows are no multiple of a block of {options.type}")
    return "\n".join([*lines, *result.notes])
