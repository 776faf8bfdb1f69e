# SPDX-License-Identifier: Apache-2.0
"""``ziggurat recall import FILE``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ziggurat.cli.flags import Parser, add_flags, build, flags_of
from ziggurat.cli.output import emit
from ziggurat.cli.progress import show_steps
from ziggurat.cli.recall.common import open_named, store_parser
from ziggurat.engine.config import option
from ziggurat.recall.exchange import FORMS, read_memories

BATCH = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportOptions:
    """What the file is."""

    form: str = option(
        "jsonl", "what the file is: our own lines, a chat, paragraphs, or LoCoMo", choices=FORMS, group="memory"
    )


def parser() -> Parser:
    """Its flags."""
    parser = store_parser("import", "Remember what is in a file. What is there already is not kept twice.")
    parser.add_argument("file", metavar="FILE", type=Path, help="the file")
    add_flags(parser, flags_of(ImportOptions))
    return parser


def run(argv: Sequence[str]) -> int:
    """Read, remember, count.

    Raises:
        UserError: the file is not of that form; nothing of it was kept.
    """
    namespace = parser().parse(argv)
    form = build(ImportOptions, namespace).form
    memories = list(read_memories(namespace.file, form))  # type: ignore[arg-type]  # one of the flag's choices
    num_new = 0
    with open_named(namespace) as store:
        for start in range(0, len(memories), BATCH):
            num_new += sum(added.is_new for added in store.add(memories[start : start + BATCH]))
            show_steps(min(start + BATCH, len(memories)), len(memories), "memories")
    show_steps(0, 0, "")
    result = {"num_read": len(memories), "num_new": num_new, "num_known": len(memories) - num_new}
    emit(namespace, result, lambda: f"{num_new} new memories, {len(memories) - num_new} were known")
    return 0
