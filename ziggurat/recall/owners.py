# SPDX-License-Identifier: Apache-2.0
"""A store per owner. An owner's memories are in a folder of their own, whose name is a digest: no name that somebody sends is a path."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

from ziggurat.errors import RequestError
from ziggurat.recall.cube import check_label
from ziggurat.recall.encoder import Encoder
from ziggurat.recall.store import MemStore

DEFAULT_OWNER = "default"


class AccessDenied(RequestError):
    """Nobody is named whose memories are meant."""

    code = "access_denied"


def default_folder() -> Path:
    """``ziggurat/recall`` in the user's data folder (``XDG_DATA_HOME``)."""
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "ziggurat" / "recall"


def owner_folder(folder: Path, owner: str) -> Path:
    """Where an owner's memories are.

    Raises:
        AccessDenied: no owner.
        RequestError: a name that is too long or no text.
    """
    if not owner:
        raise AccessDenied("say whose memories are meant: an owner is needed", param="user")
    check_label(owner, "user")
    return folder / "owners" / hashlib.blake2b(owner.encode(), digest_size=16).hexdigest()


def open_store(folder: Path, owner: str, encoder: Encoder | None = None) -> MemStore:
    """An owner's store.

    Raises:
        AccessDenied, RequestError: see `owner_folder`. ConfigError: see `MemStore`.
    """
    return MemStore(owner_folder(folder, owner), encoder=encoder)


def forget_owner(folder: Path, owner: str) -> bool:
    """Remove everything of an owner; False if there was nothing. No store of the owner may be open.

    Raises:
        AccessDenied, RequestError: see `owner_folder`.
    """
    place = owner_folder(folder, owner)
    if not place.is_dir():
        return False
    shutil.rmtree(place)
    return True
