# SPDX-License-Identifier: Apache-2.0
"""``ziggurat bench KIND``: measurements by vLLM's names, of an engine in this process or of a server over HTTP."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Protocol, cast

from ziggurat.cli.flags import Parser, UsageError
from ziggurat.registry import nearest

KINDS = {
    "latency": "seconds of one batch, repeated",
    "throughput": "all requests at once: requests and tokens per second",
    "serve": "requests at a rate, or from clients that wait: TTFT, TPOT, ITL, E2EL",
    "sweep": "the highest request rate that meets a target",
    "peers": "the same work on other engines, in the same run",
}


class Kind(Protocol):
    """What the file of a kind offers."""

    def parser(self) -> Parser:
        """Its flags; loads no torch."""
        ...

    def run(self, argv: Sequence[str]) -> int:
        """Do it; returns the exit code."""
        ...


def load(kind: str) -> Kind:
    """The module of a kind."""
    return cast(Kind, import_module(f"ziggurat.cli.bench.{kind}"))


def parser() -> Parser:
    """The flags before the kind: none."""
    width = max(len(name) for name in KINDS)
    kinds = "; ".join(f"{name:<{width}}: {summary}" for name, summary in KINDS.items())
    parser = Parser("ziggurat bench", f"Measure. Kinds: {kinds}. `ziggurat bench KIND --help` lists its flags.")
    parser.add_argument("kind", metavar="KIND", help=", ".join(KINDS))
    return parser


def run(argv: Sequence[str]) -> int:
    """Find the kind and run it.

    Raises:
        UsageError: there is no such kind.
    """
    if argv and argv[0] in KINDS:
        return load(argv[0]).run(argv[1:])
    if not argv:
        print(parser().format_help(), file=sys.stderr)
        return 2
    kind = parser().parse(argv[:1]).kind
    raise UsageError(f"unknown kind {kind!r}{nearest(kind, list(KINDS)) or '.'} See `ziggurat bench --help`")
