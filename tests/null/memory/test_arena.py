# SPDX-License-Identifier: Apache-2.0
"""Arenas on the real operating system: pages come with the first write and go when discarded."""

from __future__ import annotations

import numpy as np
import pytest

from ziggurat.errors import DoesNotFit
from ziggurat.memory.arena import PAGE_BYTES, Arena
from ziggurat.memory.machine import Machine
from ziggurat.units import GIB, MIB


def test_an_arena_is_aligned_rounded_and_not_touched() -> None:
    before_bytes = Machine().process_memory().rss_bytes
    with Arena(2 * GIB + 1, "pool") as arena:
        assert arena.address % PAGE_BYTES == 0
        assert arena.num_bytes == 2 * GIB + PAGE_BYTES
        assert len(arena.buffer) == arena.num_bytes
        assert arena.resident_bytes() == 0
        assert Machine().process_memory().rss_bytes - before_bytes < 16 * MIB


def test_address_and_buffer_are_the_same_bytes() -> None:
    with Arena(PAGE_BYTES, "pool") as arena:
        array = np.frombuffer(arena.buffer, np.uint8)
        assert array.ctypes.data == arena.address
        array[7] = 42
        assert arena.buffer[7] == 42
        assert arena.buffer[6] == 0
        del array


def test_discard_gives_back_whole_pages_only() -> None:
    with Arena(64 * PAGE_BYTES, "pool") as arena:
        array = np.frombuffer(arena.buffer, np.uint8)
        array[:] = 1
        assert arena.resident_bytes() == 64 * PAGE_BYTES
        # [page 0 | page 1 | page 2 ..): one byte of page 0 and one of page 2 stay, so only page 1 goes.
        assert arena.discard(1, 2 * PAGE_BYTES) == PAGE_BYTES
        assert arena.resident_bytes() == 63 * PAGE_BYTES
        assert array[0] == array[2 * PAGE_BYTES] == 1
        assert not array[PAGE_BYTES : 2 * PAGE_BYTES].any()
        assert arena.discard(1, PAGE_BYTES) == 0
        assert arena.discard(32 * PAGE_BYTES, 32 * PAGE_BYTES) == 32 * PAGE_BYTES
        assert not array[32 * PAGE_BYTES :].any()
        del array


def test_discard_outside_is_our_own_fault() -> None:
    with Arena(PAGE_BYTES, "pool") as arena:
        for offset, num_bytes in ((-1, 1), (0, PAGE_BYTES + 1), (PAGE_BYTES, 1), (0, -1)):
            with pytest.raises(AssertionError):
                arena.discard(offset, num_bytes)


def test_closing_gives_the_pages_back_even_under_an_array() -> None:
    arena = Arena(8 * MIB, "pool")
    array = np.frombuffer(arena.buffer, np.uint8)
    array[:] = 1
    held_bytes = Machine().rss_bytes()
    arena.close()
    assert held_bytes - Machine().rss_bytes() > 6 * MIB
    assert not array.any()
    arena.close()
    with pytest.raises(AssertionError):
        arena.discard(0, 1)


def test_advice_for_huge_pages_is_never_an_error() -> None:
    with Arena(4 * MIB, "pool") as arena:
        assert arena.advise_huge() in (True, False)
        arena.buffer[0] = 1
        assert arena.buffer[0] == 1


def test_too_much_address_space_is_refused_with_numbers() -> None:
    with pytest.raises(DoesNotFit, match="address space for pool") as error:
        Arena(1 << 60, "pool")
    assert error.value.needed_bytes == 1 << 60
