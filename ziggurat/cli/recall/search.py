# SPDX-License-Identifier: Apache-2.0
"""``ziggurat recall search QUERY``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ziggurat.cli.flags import Parser, add_flags, build, flags_of
from ziggurat.cli.output import emit
from ziggurat.cli.recall.common import as_json, encode_all, one_line, open_named, store_parser
from ziggurat.engine.config import option
from ziggurat.recall.cube import KINDS, Filter, Hit


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchOptions:
    """How many, and which are looked at."""

    k: int = option(10, "memories to show at most", group="search")
    kind: str | None = option(None, "only this kind", choices=KINDS, group="search")
    agent: str | None = option(None, "only this agent's", group="search")
    session: str | None = option(None, "only of this session", group="search")
    since: float | None = option(None, "said at or after, Unix seconds", group="search")
    until: float | None = option(None, "said before, Unix seconds", group="search")
    as_of: float | None = option(None, "what was known and true at that time, Unix seconds", group="search")


def parser() -> Parser:
    """Its flags."""
    parser = store_parser("search", "Find the memories that answer best, by words and, with an encoder, by meaning.")
    parser.add_argument("query", metavar="QUERY", help="a question or words")
    add_flags(parser, flags_of(SearchOptions))
    return parser


def run(argv: Sequence[str]) -> int:
    """Search and print.

    Raises:
        UserError: the query, or the store.
    """
    namespace = parser().parse(argv)
    options = build(SearchOptions, namespace)
    wanted = Filter(
        kind=options.kind,  # type: ignore[arg-type]  # one of the flag's choices
        agent=options.agent,
        session=options.session,
        since_s=options.since,
        until_s=options.until,
        as_of_s=options.as_of,
    )
    with open_named(namespace, is_searching=True) as store:
        encode_all(store)
        hits = store.search(namespace.query, k=options.k, wanted=wanted)
    emit(namespace, [hit_as_json(hit) for hit in hits], lambda: as_text(hits))
    return 0


def hit_as_json(hit: Hit) -> dict[str, Any]:
    """The memory, its score and why."""
    return {"score": hit.score, "parts": hit.parts, "words": list(hit.words), "memory": as_json(hit.memory)}


def as_text(hits: Sequence[Hit]) -> str:
    """A line per memory, best first, and why."""
    if not hits:
        return "nothing found"
    lines = []
    for hit in hits:
        why = ", ".join(f"{name} {value:.2f}" for name, value in hit.parts.items())
        lines.append(
            f"{hit.score:.2f}  {one_line(hit.memory)}\n      {why}" + (f" ({' '.join(hit.words)})" if hit.words else "")
        )
    return "\n".join(lines)
