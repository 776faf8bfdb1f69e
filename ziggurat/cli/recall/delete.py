# SPDX-License-Identifier: Apache-2.0
"""``ziggurat recall delete ID [--hard]``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from ziggurat.cli.flags import Parser, add_flags, build, flags_of
from ziggurat.cli.output import emit
from ziggurat.cli.recall.common import open_named, store_parser
from ziggurat.engine.config import option


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteOptions:
    """How thoroughly."""

    hard: bool = option(False, "leave no byte of it in log or index; cannot be taken back", group="memory")


def parser() -> Parser:
    """Its flags."""
    parser = store_parser("delete", "Forget a memory. Without --hard it can be restored.")
    parser.add_argument("id", metavar="ID", help="id of the memory")
    add_flags(parser, flags_of(DeleteOptions))
    return parser


def run(argv: Sequence[str]) -> int:
    """Delete and print the receipt.

    Raises:
        UserError: no such memory.
    """
    namespace = parser().parse(argv)
    with open_named(namespace) as store:
        receipt = store.delete(namespace.id, hard=build(DeleteOptions, namespace).hard)
    how = (
        f"erased, {receipt.num_records} records went"
        if receipt.is_hard
        else "deleted; `ziggurat recall restore` takes it back"
    )
    emit(namespace, asdict(receipt), lambda: f"{receipt.id} {how}; {receipt.num_stale} memories made from it are stale")
    return 0
