# SPDX-License-Identifier: Apache-2.0
"""``--format text|json`` and ``--output FILE``, the same for every verb that prints a result."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from ziggurat.cli.flags import Parser, add_flags, flags_of
from ziggurat.engine.config import option
from ziggurat.errors import ConfigError

# C0 controls have pictures from U+2400 on; C1 controls, some of which terminals obey too, and DEL become the replacement character.
_VISIBLE = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | dict.fromkeys(
    range(127, 160), 0xFFFD
)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputOptions:
    """How and where a result is printed."""

    format: str = option("text", "text for people, json for programs", choices=("text", "json"), group="output")
    output: Path | None = option(None, "write the result to this file instead of standard output", group="output")


def add_output_flags(parser: Parser) -> None:
    """Add ``--format`` and ``--output``."""
    add_flags(parser, flags_of(OutputOptions))


def emit(namespace: argparse.Namespace, data: Any, text: Callable[[], str]) -> None:
    """Print a result.

    Args:
        data: what ``--format json`` prints.
        text: makes what ``--format text`` prints, without the last newline.

    Raises:
        ConfigError: the file of ``--output`` cannot be written.
    """
    is_json = getattr(namespace, "format", "text") == "json"
    result = json.dumps(data, indent=2, ensure_ascii=False) if is_json else text()
    path: Path | None = getattr(namespace, "output", None)
    if path is None:
        print(result)
        return
    try:
        path.write_text(result + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error
    print(f"wrote {path}", file=sys.stderr)


def write_piece(text: str, out: TextIO) -> None:
    """Write generated text at once. On a terminal control characters other than newline and tab are shown as symbols, so that a model
    cannot send escape sequences to it; files and pipes get the text as it is."""
    out.write(text.translate(_VISIBLE) if out.isatty() else text)
    out.flush()


def table(rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> str:
    """Lines of columns two spaces apart; the columns numbered in ``right`` are aligned to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
