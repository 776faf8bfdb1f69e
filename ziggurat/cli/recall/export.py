# SPDX-License-Identifier: Apache-2.0
"""``ziggurat recall export``: all memories as JSON lines."""

from __future__ import annotations

import json
from collections.abc import Sequence

from ziggurat.cli.flags import Parser
from ziggurat.cli.output import emit
from ziggurat.cli.recall.common import open_named, store_parser
from ziggurat.recall.cube import Filter
from ziggurat.recall.exchange import write_memory


def parser() -> Parser:
    """Its flags."""
    return store_parser(
        "export",
        "Write every memory that is not deleted: a JSON object per line, which `ziggurat recall import` reads.",
    )


def run(argv: Sequence[str]) -> int:
    """Print.

    Raises:
        UserError: the store, or the file of --output.
    """
    namespace = parser().parse(argv)
    with open_named(namespace) as store:
        lines = [write_memory(memory) for memory in store.all(Filter())]
    emit(namespace, [json.loads(line) for line in lines], lambda: "\n".join(lines))
    return 0
