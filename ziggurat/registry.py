# SPDX-License-Identifier: Apache-2.0
"""One small registry for everything that is chosen by name: a new policy touches its own file and its test only."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from ziggurat.errors import ConfigError

T = TypeVar("T")


def nearest(name: str, choices: list[str]) -> str:
    """``", did you mean 'x'?"`` for the closest choice, or an empty string."""
    close = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    return f", did you mean {close[0]!r}?" if close else ""


class Registry(Generic[T]):
    """Named objects of one kind, filled by decorator.

    Args:
        kind: what the entries are, as it appears in error texts ("batch planner").
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, *names: str) -> Callable[[T], T]:
        """Decorator that files an object under one or more names. A name can be taken once."""

        def add(entry: T) -> T:
            for name in names:
                assert name not in self._entries, f"{self.kind} {name!r} registered twice"
                self._entries[name] = entry
            return entry

        return add

    def get(self, name: str) -> T:
        """The entry of that name.

        Raises:
            ConfigError: unknown name; says the nearest one and lists all.
        """
        if name not in self._entries:
            names = self.names()
            raise ConfigError(f"unknown {self.kind} {name!r}{nearest(name, names) or '.'} Known: {', '.join(names)}")
        return self._entries[name]

    def names(self) -> list[str]:
        """All names, sorted: the choices of a flag, the rows of a table."""
        return sorted(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())
