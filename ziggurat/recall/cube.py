# SPDX-License-Identifier: Apache-2.0
"""`MemCube`: one memory with its identity, where it came from, who may see it, how long it lives and how it is used. Plain data."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from typing import Any, Literal

from ziggurat.errors import RequestError

Kind = Literal["fact", "preference", "event", "task", "skill", "message", "note"]
KINDS: tuple[Kind, ...] = ("fact", "preference", "event", "task", "skill", "message", "note")
Status = Literal["active", "archived", "deleted"]
MAX_TEXT_BYTES = 65_536
MAX_LABEL = 200
FOREVER_S = math.inf


class ExpiredOnArrival(RequestError):
    """The lifetime of a memory ends before it begins."""

    code = "expired_on_arrival"


class VersionConflict(RequestError):
    """Somebody has changed the memory since it was read.

    Attributes:
        expected, found: version numbers.
    """

    code = "version_conflict"

    def __init__(self, memory_id: str, *, expected: int, found: int) -> None:
        super().__init__(
            f"memory {memory_id} is at version {found}, not {expected}: read it again and decide anew",
            param="expected_version",
        )
        self.expected, self.found = expected, found


@dataclass(frozen=True, slots=True, kw_only=True)
class NewMemory:
    """What somebody wants to be remembered.

    Attributes:
        agent, session: who said it and where; empty is nobody and nowhere.
        sources: ids of memories that this one was made from; it is marked stale when one of them changes.
        valid_from_s, valid_until_s: when it is true (Unix seconds); ``as_of`` asks by it. None is from its arrival, or without end.
        expires_s: when it is to be forgotten.
        said_s: when it was said, if that is not now.
        confidence: 0 to 1.
        tags: free words.
    """

    text: str
    kind: Kind = "fact"
    agent: str = ""
    session: str = ""
    speaker: str = ""
    sources: tuple[str, ...] = ()
    valid_from_s: float | None = None
    valid_until_s: float | None = None
    expires_s: float | None = None
    said_s: float | None = None
    confidence: float = 1.0
    tags: tuple[str, ...] = ()

    def check(self, now_s: float) -> None:
        """Refuse what cannot be kept.

        Raises:
            RequestError: empty, too long, not text, or a number out of range; names the field.
            ExpiredOnArrival: its lifetime is over.
        """
        check_text(self.text)
        if self.kind not in KINDS:
            raise RequestError(f"kind must be one of {', '.join(KINDS)}, got {str(self.kind)[:40]!r}", param="kind")
        for name in ("agent", "session", "speaker"):
            check_label(getattr(self, name), name)
        for tag in self.tags:
            check_label(tag, "tags")
        if not 0 <= self.confidence <= 1:
            raise RequestError(f"confidence must be between 0 and 1, got {self.confidence}", param="confidence")
        for name in ("valid_from_s", "valid_until_s", "expires_s", "said_s"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise RequestError(f"{name} must be a finite time in Unix seconds, got {value}", param=name)
        if self.expires_s is not None and self.expires_s <= now_s:
            raise ExpiredOnArrival(f"expires_s {self.expires_s:.0f} is not after now, {now_s:.0f}", param="expires_s")
        first, last = self.valid_from_s, self.valid_until_s
        if first is not None and last is not None and last <= first:
            raise ExpiredOnArrival(
                f"valid_until_s {last:.0f} is not after valid_from_s {first:.0f}", param="valid_until_s"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class MemCube:
    """One memory as it is now.

    Attributes:
        version: 1 at first; every change of the text adds one.
        created_s, updated_s: Unix seconds.
        is_stale: a source of it has changed or gone since.
        num_uses: how often a search returned it.
        num_seen: how often the same text was added.
    """

    id: str
    text: str
    kind: Kind
    status: Status
    version: int
    agent: str
    session: str
    speaker: str
    sources: tuple[str, ...]
    created_s: float
    updated_s: float
    said_s: float
    valid_from_s: float
    valid_until_s: float = FOREVER_S
    expires_s: float = FOREVER_S
    confidence: float = 1.0
    tags: tuple[str, ...] = ()
    is_stale: bool = False
    num_uses: int = 0
    num_seen: int = 1

    def as_dict(self) -> dict[str, Any]:
        """For JSON; times without end are null."""
        found: dict[str, Any] = {name: getattr(self, name) for name in self.__dataclass_fields__}
        for name in ("valid_until_s", "expires_s"):
            if found[name] == FOREVER_S:
                found[name] = None
        return {**found, "sources": list(self.sources), "tags": list(self.tags)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """A text that a memory had. ``update_type``: why it was replaced, or ``added``."""

    version: int
    text: str
    changed_s: float
    update_type: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which memories are looked at. Everything that is set must hold.

    Attributes:
        as_of_s: valid at that time, and known by then; None is now.
    """

    kind: Kind | None = None
    agent: str | None = None
    session: str | None = None
    since_s: float | None = None
    until_s: float | None = None
    as_of_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """A memory that was found.

    Attributes:
        parts: what each signal adds to the score, largest first.
        words: the query's words that it has.
    """

    memory: MemCube
    score: float
    parts: dict[str, float] = field(default_factory=dict)
    words: tuple[str, ...] = ()


def check_text(text: str) -> None:
    """Refuse a text that cannot be kept.

    Raises:
        RequestError: empty, too long, or with half characters.
    """
    try:
        num_bytes = len(text.encode())
    except UnicodeEncodeError as error:
        raise RequestError(
            f"the text has half a character at {error.start}: it is no valid Unicode", param="text"
        ) from None
    if not text.strip():
        raise RequestError("the text is empty", param="text")
    if num_bytes > MAX_TEXT_BYTES:
        raise RequestError(
            f"the text has {num_bytes} bytes and a memory at most {MAX_TEXT_BYTES}: split it, one memory per thought",
            param="text",
        )


def check_label(text: str, name: str) -> None:
    """Refuse a name that is too long or not text.

    Raises:
        RequestError: names the field.
    """
    if len(text) > MAX_LABEL:
        raise RequestError(f"{name} has {len(text)} characters and at most {MAX_LABEL} are taken", param=name)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RequestError(f"{name} has half a character: it is no valid Unicode", param=name) from None


def text_hash(text: str) -> str:
    """Of what counts as the same text: case and spaces do not."""
    return hashlib.blake2b(" ".join(text.casefold().split()).encode(), digest_size=16).hexdigest()
