# SPDX-License-Identifier: Apache-2.0
"""``ziggurat recall restore ID VERSION``."""

from __future__ import annotations

from collections.abc import Sequence

from ziggurat.cli.flags import Parser
from ziggurat.cli.output import emit
from ziggurat.cli.recall.common import as_json, one_line, open_named, store_parser


def parser() -> Parser:
    """Its flags."""
    parser = store_parser(
        "restore", "Go back to an earlier text of a memory, as a new version; a deletion is taken back."
    )
    parser.add_argument("id", metavar="ID", help="id of the memory")
    parser.add_argument(
        "version", metavar="VERSION", type=int, help="number of the text, as `ziggurat recall show` lists it"
    )
    return parser


def run(argv: Sequence[str]) -> int:
    """Restore and print.

    Raises:
        UserError: no such memory or version.
    """
    namespace = parser().parse(argv)
    with open_named(namespace) as store:
        memory = store.restore(namespace.id, namespace.version)
    emit(namespace, as_json(memory), lambda: f"{one_line(memory)}  (version {memory.version})")
    return 0
