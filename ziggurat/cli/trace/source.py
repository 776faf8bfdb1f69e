# SPDX-License-Identifier: Apache-2.0
"""The file that a kind of ``trace`` reads: its flags, and the line that reconciles what was read."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ziggurat.cli.flags import Parser, add_flags, build, flags_of
from ziggurat.engine.config import option
from ziggurat.errors import ConfigError
from ziggurat.workload.traces.formats import TRACE_FORMATS, FormatSettings
from ziggurat.workload.traces.reading import Filter, ReadOptions, TraceReader

FORMATS = ("auto", *TRACE_FORMATS.names())


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceOptions:
    """How the file is read. ``from`` is a word of Python, hence the underscore that is not in the flag.

    Raises:
        ConfigError: a value is out of range.
    """

    from_: str = option(
        "auto", "format of the file; auto looks at its header or first row", choices=FORMATS, group="reading"
    )
    sort: bool = option(False, "put rows in order of time instead of refusing a file that is not", group="reading")
    skip_bad: bool = option(False, "count bad rows as dropped instead of ending at the first", group="reading")
    model: str | None = option(None, "only requests to this model, as the trace writes it", group="reading")
    log_type: str | None = option(None, "only requests of this log type (BurstGPT)", group="reading")
    start_s: float | None = option(None, "only requests from this time on, seconds of the trace", group="reading")
    end_s: float | None = option(None, "only requests before this time, seconds of the trace", group="reading")
    hash_block_tokens: int = option(512, "tokens per entry of hash_ids", group="reading")
    tokenizer: str | None = option(
        None,
        "model whose tokenizer counts text (sharegpt); without it a token is four bytes, which is an estimate",
        group="reading",
    )

    def __post_init__(self) -> None:
        if self.hash_block_tokens < 1:
            raise ConfigError(f"hash_block_tokens must be at least 1, got {self.hash_block_tokens}")
        if self.start_s is not None and self.end_s is not None and not self.start_s < self.end_s:
            raise ConfigError(f"the window [{self.start_s}, {self.end_s}) s is empty: end_s must be above start_s")


def add_source(parser: Parser) -> None:
    """Add FILE and the flags of reading."""
    parser.add_argument("file", metavar="FILE", type=Path, help="a trace; .gz is unpacked while reading")
    add_flags(parser, flags_of(SourceOptions))


def settings_of(options: SourceOptions) -> FormatSettings:
    """What formats cannot know from the file."""
    encode: Callable[[str], Sequence[int]] | None = None
    if options.tokenizer is not None:
        from ziggurat.engine.resolve import resolve_folder
        from ziggurat.engine.tokenizer import Tokenizer

        # Pieces of one conversation are put together, so none of them begins with a token that begins a text.
        encode = partial(Tokenizer.load(resolve_folder(options.tokenizer)).encode, add_special_tokens=False)
    return FormatSettings(hash_block_tokens=options.hash_block_tokens, encode=encode)


def open_source(namespace: argparse.Namespace) -> TraceReader:
    """The reader that the flags ask for.

    Raises:
        ConfigError: a setting, or a file that is not a trace.
    """
    options = build(SourceOptions, namespace)
    wanted = Filter(model=options.model, log_type=options.log_type, start_s=options.start_s, end_s=options.end_s)
    return TraceReader(
        namespace.file,
        ReadOptions(
            source_format=None if options.from_ == "auto" else options.from_,
            sort=options.sort,
            skip_bad=options.skip_bad,
            wanted=wanted,
            settings=settings_of(options),
        ),
    )


def about(reader: TraceReader) -> dict[str, Any]:
    """What was read, for JSON: file, format and the books."""
    return {
        "file": str(reader.path),
        "trace_format": reader.format_name,
        "has_times": reader.has_times,
        **reader.counts.as_dict(),
    }
