# SPDX-License-Identifier: Apache-2.0
"""``ziggurat recall stats``."""

from __future__ import annotations

from collections.abc import Sequence

from ziggurat.cli.flags import Parser
from ziggurat.cli.output import emit, table
from ziggurat.cli.recall.common import open_named, store_parser


def parser() -> Parser:
    """Its flags."""
    return store_parser("stats", "Count memories and bytes, and say how many still wait for search by meaning.")


def run(argv: Sequence[str]) -> int:
    """Print.

    Raises:
        UserError: the store.
    """
    namespace = parser().parse(argv)
    with open_named(namespace, is_searching=True) as store:
        store.sweep()
        stats = {"folder": str(store.folder), **store.stats()}
    emit(
        namespace, stats, lambda: table([[name, "-" if value is None else str(value)] for name, value in stats.items()])
    )
    return 0
