# SPDX-License-Identifier: Apache-2.0
"""``ziggurat hardware show NAME``: what is known of a device or link, and from where."""

from __future__ import annotations

from collections.abc import Sequence

from ziggurat.cli.flags import Parser
from ziggurat.cli.output import add_output_flags, emit, table
from ziggurat.hardware.specs import Spec, find_spec


def parser() -> Parser:
    """Its flags."""
    parser = Parser("ziggurat hardware show", "Show the constants of a device or link, each with its source.")
    parser.add_argument("name", metavar="NAME", help="a name or alias of `ziggurat hardware list`")
    add_output_flags(parser)
    return parser


def run(argv: Sequence[str]) -> int:
    """Print one entry.

    Raises:
        ConfigError: unknown name; says the nearest.
    """
    namespace = parser().parse(argv)
    spec = find_spec(namespace.name)
    emit(namespace, spec.as_dict(), lambda: as_text(spec))
    return 0


def as_text(spec: Spec) -> str:
    """A row per constant."""
    rows = [["constant", "value", "unit", "confidence", "source"]]
    rows += [[key, f"{c.value:g}", c.unit, c.confidence, c.source] for key, c in spec.constants.items()]
    head = f"{spec.title} ({spec.kind} {spec.name}{', also ' + ', '.join(spec.aliases) if spec.aliases else ''})"
    return "\n".join([head, "", table(rows, right=(1,)), *([f"\n{spec.note}"] if spec.note else [])])
