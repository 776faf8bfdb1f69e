# SPDX-License-Identifier: Apache-2.0
"""``ziggurat recall add TEXT``: remember."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from ziggurat.cli.flags import Parser, UsageError, add_flags, build, flags_of
from ziggurat.cli.output import emit
from ziggurat.cli.recall.common import open_named, store_parser
from ziggurat.engine.config import option
from ziggurat.recall.cube import KINDS, NewMemory


@dataclass(frozen=True, slots=True, kw_only=True)
class AddOptions:
    """What is said of the memories besides their text."""

    kind: str = option("fact", "what it is", choices=KINDS, group="memory")
    agent: str = option("", "which agent remembers", group="memory")
    session: str = option("", "in which conversation or task", group="memory")
    speaker: str = option("", "who said it", group="memory")
    tag: tuple[str, ...] = option((), "a word to find it by; may be given several times", group="memory")
    source: tuple[str, ...] = option((), "id of a memory it was made from; may be given several times", group="memory")
    valid_until: float | None = option(None, "until when it is true, Unix seconds", group="memory")
    expires: float | None = option(None, "when to forget it, Unix seconds", group="memory")


def parser() -> Parser:
    """Its flags."""
    parser = store_parser(
        "add", "Remember texts: durable when the command ends. A text that is there already is not kept twice."
    )
    parser.add_argument(
        "texts", metavar="TEXT", nargs="*", help="what to remember; - reads a text per line from standard input"
    )
    add_flags(parser, flags_of(AddOptions))
    return parser


def run(argv: Sequence[str]) -> int:
    """Remember and print the ids.

    Raises:
        UsageError: no text. UserError: a text cannot be kept, or the store cannot be written.
    """
    namespace = parser().parse(argv)
    options = build(AddOptions, namespace)
    texts: list[str] = namespace.texts
    if texts == ["-"]:
        texts = [line for line in sys.stdin.read().splitlines() if line.strip()]
    if not texts:
        raise UsageError('nothing to remember: ziggurat recall add "a text", or - to read lines from standard input')
    memories = [
        NewMemory(
            text=text,
            kind=options.kind,  # type: ignore[arg-type]  # one of the flag's choices
            agent=options.agent,
            session=options.session,
            speaker=options.speaker,
            tags=options.tag,
            sources=options.source,
            valid_until_s=options.valid_until,
            expires_s=options.expires,
        )
        for text in texts
    ]
    with open_named(namespace) as store:
        added = store.add(memories)
    result = [{"id": each.id, "is_new": each.is_new} for each in added]
    emit(namespace, result, lambda: "\n".join(each.id + ("" if each.is_new else "  known already") for each in added))
    return 0
