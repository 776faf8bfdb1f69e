# SPDX-License-Identifier: Apache-2.0
"""``ziggurat recall show ID``: one memory and its history."""

from __future__ import annotations

from collections.abc import Sequence

from ziggurat.cli.flags import Parser
from ziggurat.cli.output import emit
from ziggurat.cli.recall.common import as_json, one_line, open_named, store_parser
from ziggurat.recall.exchange import date_text


def parser() -> Parser:
    """Its flags."""
    parser = store_parser(
        "show", "Show one memory: every text it had, what it was made from and what was made from it."
    )
    parser.add_argument("id", metavar="ID", help="id of the memory")
    return parser


def run(argv: Sequence[str]) -> int:
    """Print it.

    Raises:
        UserError: no such memory.
    """
    namespace = parser().parse(argv)
    with open_named(namespace) as store:
        memory, history, derived = store.get(namespace.id), store.history(namespace.id), store.derived(namespace.id)
    versions = [
        {"version": each.version, "text": each.text, "changed_s": each.changed_s, "update_type": each.update_type}
        for each in history
    ]
    lines = [
        one_line(memory),
        *(f"  {v.version}  {date_text(v.changed_s)}  {v.update_type}: {v.text}" for v in history),
    ]
    lines += [f"  made from {each}" for each in memory.sources] + [f"  {each} was made from it" for each in derived]
    emit(namespace, {**as_json(memory), "history": versions, "derived": derived}, lambda: "\n".join(lines))
    return 0
