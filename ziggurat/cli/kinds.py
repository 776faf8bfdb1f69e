# SPDX-License-Identifier: Apache-2.0
"""A verb that comes in kinds (``bench latency``, ``trace stats``): one file per kind in the verb's folder, loaded when it is called."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Protocol, cast

from ziggurat.cli.flags import Parser, UsageError
from ziggurat.registry import nearest


class Kind(Protocol):
    """What the file of a kind offers."""

    def parser(self) -> Parser:
        """Its flags; loads no torch."""
        ...

    def run(self, argv: Sequence[str]) -> int:
        """Do it; returns the exit code."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Kinds:
    """The kinds of one verb.

    Attributes:
        summaries: kind -> one line of help.
    """

    verb: str
    description: str
    summaries: Mapping[str, str]

    def load(self, kind: str) -> Kind:
        """The module of a kind."""
        return cast(Kind, import_module(f"ziggurat.cli.{self.verb}.{kind}"))

    def parser(self) -> Parser:
        """The flags before the kind: none."""
        width = max(len(name) for name in self.summaries)
        kinds = "; ".join(f"{name:<{width}}: {summary}" for name, summary in self.summaries.items())
        prog = f"ziggurat {self.verb}"
        parser = Parser(prog, f"{self.description} Kinds: {kinds}. `{prog} KIND --help` lists its flags.")
        parser.add_argument("kind", metavar="KIND", help=", ".join(self.summaries))
        return parser

    def run(self, argv: Sequence[str]) -> int:
        """Find the kind and run it.

        Raises:
            UsageError: there is no such kind.
        """
        if argv and argv[0] in self.summaries:
            return self.load(argv[0]).run(argv[1:])
        if not argv:
            print(self.parser().format_help(), file=sys.stderr)
            return 2
        kind = self.parser().parse(argv[:1]).kind
        hint = nearest(kind, list(self.summaries)) or "."
        raise UsageError(f"unknown kind {kind!r}{hint} See `ziggurat {self.verb} --help`")
