# SPDX-License-Identifier: Apache-2.0
"""``ziggurat trace convert FILE --to FORMAT --output FILE``: the same requests in another format, row by row."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ziggurat.cli.flags import Parser, UsageError, add_flags, build, flags_of
from ziggurat.cli.output import add_output_flags
from ziggurat.cli.trace.source import about, add_source, open_source
from ziggurat.engine.config import option
from ziggurat.workload.records import Arrival
from ziggurat.workload.traces.formats import TRACE_FORMATS, FormatSettings
from ziggurat.workload.traces.writing import TraceWriter, write_trace


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertOptions:
    """Into what."""

    to: str = option("mooncake", "format to write", choices=tuple(TRACE_FORMATS.names()), group="writing")
    to_block_tokens: int = option(512, "tokens per hash id that is written (mooncake)", group="writing")


def parser() -> Parser:
    """Its flags."""
    parser = Parser("ziggurat trace convert", "Write a trace in another format; --output FILE takes the trace.")
    add_source(parser)
    add_flags(parser, flags_of(ConvertOptions))
    add_output_flags(parser)
    return parser


def run(argv: Sequence[str]) -> int:
    """Convert, and print the books.

    Raises:
        ConfigError: a setting, or a file that is not a trace; says the row.
        UnsupportedFeature: the format holds what the trace does not have.
    """
    namespace = parser().parse(argv)
    options = build(ConvertOptions, namespace)
    path = output_of(namespace, "convert")
    reader = open_source(namespace)
    written = write(path, reader, options)
    report(namespace, {**about(reader), **written}, [reader.counts.as_text(), *lines(written)])
    return 0


def output_of(namespace: argparse.Namespace, kind: str) -> Path:
    """The file of ``--output``, which here is the trace.

    Raises:
        UsageError: there is none.
    """
    path: Path | None = getattr(namespace, "output", None)
    if path is None:
        raise UsageError(f"--output FILE is missing: it takes the trace. See `ziggurat trace {kind} --help`")
    return path


def write(path: Path, arrivals: Iterable[Arrival], options: ConvertOptions) -> dict[str, Any]:
    """Write the file; returns what is said about it.

    Raises:
        ConfigError: it cannot be written.
    """
    settings = FormatSettings(hash_block_tokens=options.to_block_tokens)
    return written_of(path, options.to, write_trace(path, arrivals, options.to, settings))


def written_of(path: Path, name: str, writer: TraceWriter) -> dict[str, Any]:
    """For JSON."""
    return {
        "output_file": str(path),
        "output_format": name,
        "rows_written": writer.num_written,
        "fields_lost": dict(sorted(writer.lost.items())),
    }


def lines(written: dict[str, Any]) -> list[str]:
    """The same for people."""
    found = [f"{written['rows_written']:,} requests written to {written['output_file']} as {written['output_format']}"]
    if written["fields_lost"]:
        lost = ", ".join(f"{field} of {count:,}" for field, count in written["fields_lost"].items())
        found.append(f"the format cannot hold, and the file lacks: {lost}")
    return found


def report(namespace: argparse.Namespace, data: dict[str, Any], text: Sequence[str]) -> None:
    """Print the books; ``--output`` has the trace already."""
    is_json = getattr(namespace, "format", "text") == "json"
    print(json.dumps(data, indent=2, ensure_ascii=False) if is_json else "\n".join(text))
