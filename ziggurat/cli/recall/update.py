# SPDX-License-Identifier: Apache-2.0
"""``ziggurat recall update ID TEXT``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ziggurat.cli.flags import Parser, add_flags, build, flags_of
from ziggurat.cli.output import emit
from ziggurat.cli.recall.common import as_json, one_line, open_named, store_parser
from ziggurat.engine.config import option


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateOptions:
    """What the change builds on."""

    expected_version: int | None = option(None, "refuse if the memory is at another version", group="memory")
    reason: str = option("feedback", "why: conflict, duplicate, extract, feedback ..", group="memory")


def parser() -> Parser:
    """Its flags."""
    parser = store_parser(
        "update", "Replace the text of a memory. The old one stays in its history; what was made from it becomes stale."
    )
    parser.add_argument("id", metavar="ID", help="id of the memory")
    parser.add_argument("text", metavar="TEXT", help="the new text")
    add_flags(parser, flags_of(UpdateOptions))
    return parser


def run(argv: Sequence[str]) -> int:
    """Change and print.

    Raises:
        UserError: no such memory, another version, or the text cannot be kept.
    """
    namespace = parser().parse(argv)
    options = build(UpdateOptions, namespace)
    with open_named(namespace) as store:
        memory = store.update(
            namespace.id, namespace.text, expected_version=options.expected_version, update_type=options.reason
        )
    emit(namespace, as_json(memory), lambda: f"{one_line(memory)}  (version {memory.version})")
    return 0
