# SPDX-License-Identifier: Apache-2.0
"""``ziggurat recall reindex``: the index again from the log, vectors too."""

from __future__ import annotations

from collections.abc import Sequence

from ziggurat.cli.flags import Parser, build
from ziggurat.cli.output import emit
from ziggurat.cli.recall.common import StoreOptions, encode_all, folder_of, open_named, store_parser
from ziggurat.recall.owners import owner_folder
from ziggurat.recall.records import INDEX


def parser() -> Parser:
    """Its flags."""
    return store_parser("reindex", "Make the index again from the log, and the vectors with the encoder of --encoder.")


def run(argv: Sequence[str]) -> int:
    """Drop, replay, encode.

    Raises:
        UserError: the store.
    """
    namespace = parser().parse(argv)
    folder = owner_folder(folder_of(namespace), build(StoreOptions, namespace).user)
    open_named(namespace).close()  # nobody else writes it, and its log can be read
    for each in folder.glob(f"{INDEX}*"):
        each.unlink()
    with open_named(namespace, is_searching=True) as store:
        encode_all(store)
        stats = store.stats()
    emit(
        namespace,
        stats,
        lambda: f"{stats['num_active']} memories, {stats['num_vectors']} vectors of {stats['encoder'] or 'no encoder'}",
    )
    return 0
