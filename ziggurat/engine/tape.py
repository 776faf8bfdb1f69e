# SPDX-License-Identifier: Apache-2.0
"""Recorded steps. Arenas and input arrays stay where they are, so a step of a known shape is the same kernels with the same
addresses: the native library repeats them in one call, without Python and without its lock."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Protocol


class Tape(Protocol):
    """The native library's ``Tape``: kernel calls made inside ``with tape:`` on this thread are kept."""

    def play(self) -> None:
        """Repeat them."""
        ...


class TapeShelf:
    """The most recently played tapes by shape.

    Args:
        max_tapes: how many are kept; one takes about a quarter of a kilobyte per call.
    """

    def __init__(self, max_tapes: int) -> None:
        self._max_tapes = max_tapes
        self._tapes: OrderedDict[Hashable, Tape] = OrderedDict()

    def play(self, key: Hashable) -> bool:
        """Repeat the calls of that shape; False if there are none."""
        tape = self._tapes.get(key)
        if tape is None:
            return False
        self._tapes.move_to_end(key)
        tape.play()
        return True

    def keep(self, key: Hashable, tape: Tape) -> None:
        """File a tape; the one that was not played for longest goes."""
        self._tapes[key] = tape
        if len(self._tapes) > self._max_tapes:
            self._tapes.popitem(last=False)
