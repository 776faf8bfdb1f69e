# SPDX-License-Identifier: Apache-2.0
"""The table of systems, read from ``systems.toml``."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ziggurat.errors import ConfigError
from ziggurat.registry import nearest

_TABLE = Path(__file__).with_name("systems.toml")


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """One publication.

    Attributes:
        slug: what ``ziggurat reproduce`` takes.
        title: the publication's own.
        rooms: where its mechanism lives or will live.
        section: the part of the literature it belongs to.
    """

    slug: str
    title: str
    rooms: tuple[str, ...]
    section: str


@cache
def systems() -> tuple[System, ...]:
    """All systems, in the order of the table."""
    raw = tomllib.loads(_TABLE.read_text(encoding="utf-8"))
    return tuple(
        System(slug=row["slug"], title=row["title"], rooms=tuple(row["rooms"]), section=row["section"])
        for row in raw["system"]
    )


def find_system(slug: str) -> System:
    """The system of that slug.

    Raises:
        ConfigError: there is none; names the nearest.
    """
    by_slug = {system.slug: system for system in systems()}
    if slug not in by_slug:
        hint = nearest(slug, list(by_slug))
        raise ConfigError(f"unknown system {slug!r}{hint or '.'} See `ziggurat systems` for all {len(by_slug)}")
    return by_slug[slug]
