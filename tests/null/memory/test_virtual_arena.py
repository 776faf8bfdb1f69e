# SPDX-License-Identifier: Apache-2.0
"""The reservation and its pool of memory: what is mapped where, what is in memory, what faults."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.null.memory.test_virtual_store import make
from ziggurat.errors import ConfigError
from ziggurat.memory.arena import PAGE_BYTES
from ziggurat.memory.virtual.arena import VirtualArena, page_group_bytes
from ziggurat.memory.virtual.mapper import Mapper
from ziggurat.memory.virtual.slots import UNMAPPED, MapRun


@pytest.fixture
def arena() -> Iterator[VirtualArena]:
    arena = VirtualArena(num_slots=4, slot_blocks=8, num_planes=2, group_bytes=PAGE_BYTES, num_blocks=16)
    yield arena
    arena.close()


def write(arena: VirtualArena, slot: int, plane: int, index: int, value: bytes) -> None:
    ctypes.memmove(arena.plane_address(slot, plane) + index * arena.group_bytes, value, len(value))


def read(arena: VirtualArena, slot: int, plane: int, index: int, length: int) -> bytes:
    return ctypes.string_at(arena.plane_address(slot, plane) + index * arena.group_bytes, length)


def run(slot: int, index: int, block: int, num_blocks: int = 1) -> MapRun:
    return MapRun(slot=slot, index=index, block=block, num_blocks=num_blocks)


def test_one_memory_at_two_addresses(arena: VirtualArena) -> None:
    arena.apply([run(0, 0, 3), run(2, 5, 3)])
    write(arena, 0, 1, 0, b"keys")
    assert read(arena, 2, 1, 5, 4) == b"keys" and read(arena, 2, 0, 5, 4) == bytes(4)
    assert arena.committed_bytes() == 2 * PAGE_BYTES, "a page of each plane was touched, once"


def test_a_reservation_far_beyond_ram_takes_nothing() -> None:
    group_bytes = page_group_bytes(64, 4 * 128 * 2)
    arena = VirtualArena(num_slots=256, slot_blocks=512, num_planes=64, group_bytes=group_bytes, num_blocks=64)
    try:
        assert arena.reserved_bytes == 256 * 32768 * 64 * 1024  # 512 GiB
        assert arena.committed_bytes() == 0
        arena.apply([run(255, 0, 0, 2)])
        write(arena, 255, 63, 1, b"end")
        assert arena.committed_bytes() == PAGE_BYTES
        arena.apply([run(255, 2, 2)], populate=True)
        assert arena.committed_bytes() == PAGE_BYTES + 64 * group_bytes
    finally:
        arena.close()


def test_neighbours_become_one_mapping(arena: VirtualArena) -> None:
    before = arena.num_mappings()
    for index in range(8):
        arena.apply([run(1, index, 4 + index)])
    assert arena.num_mappings() - before == 3, "one per plane, and the reservation is cut in two"
    arena.apply([run(1, 0, UNMAPPED, 8)])
    assert arena.num_mappings() == before


def test_discarded_blocks_read_as_zero_everywhere(arena: VirtualArena) -> None:
    arena.apply([run(0, 0, 3), run(2, 5, 3)])
    write(arena, 0, 0, 0, b"secret")
    arena.discard([3])
    assert read(arena, 2, 0, 5, 6) == bytes(6)


def test_a_copied_block_is_the_same_in_all_planes(arena: VirtualArena) -> None:
    arena.apply([run(0, 0, 3), run(0, 1, 4)])
    write(arena, 0, 0, 0, b"k")
    write(arena, 0, 1, 0, b"v")
    arena.copy_block(3, 4)
    assert (read(arena, 0, 0, 1, 1), read(arena, 0, 1, 1, 1)) == (b"k", b"v")


@pytest.mark.parametrize("index", [1, 2])
def test_reading_past_what_is_mapped_faults(index: int) -> None:
    code = f"""
import ctypes
from ziggurat.memory.virtual.arena import VirtualArena
from ziggurat.memory.virtual.slots import MapRun
arena = VirtualArena(num_slots=2, slot_blocks=4, num_planes=1, group_bytes=4096, num_blocks=4)
arena.apply([MapRun(slot=0, index=0, block=0, num_blocks={index})])
print(ctypes.string_at(arena.address + 4096, 1))
"""
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert child.returncode == (-11 if index == 1 else 0), child.stderr


def test_sizes_that_cannot_be_are_refused_with_the_nearest_legal_ones() -> None:
    assert page_group_bytes(64, 1024) == 65536
    with pytest.raises(ConfigError, match="nearest legal block sizes are 16 or 20 tokens"):
        page_group_bytes(17, 1024)
    with pytest.raises(ConfigError, match="not whole pages"):
        VirtualArena(num_slots=1, slot_blocks=1, num_planes=1, group_bytes=100, num_blocks=1)
    with pytest.raises(ConfigError, match=r"take 512 TiB of address space, a process has 128 TiB"):
        VirtualArena(num_slots=1 << 20, slot_blocks=1 << 10, num_planes=64, group_bytes=8192, num_blocks=1)


@pytest.mark.parametrize("mode", ["async", "sync"])
def test_a_mapper_keeps_the_arena_at_what_the_store_says(mode: str) -> None:
    store = make(16, 4, num_slots=3)
    arena = VirtualArena(num_slots=3, slot_blocks=1000, num_planes=2, group_bytes=PAGE_BYTES, num_blocks=16)
    mapper = Mapper(store, arena, mode="async" if mode == "async" else "sync")
    try:
        calls = []
        for step in range(40):
            if step % 10 == 0:
                store.open(f"s{step}", [step] * 5)
            name = f"s{step // 10 * 10}"
            before = arena.num_calls
            store.reserve(name, 1)
            mapper.before_step()
            index = store.sequences[name].num_computed // 4
            write(arena, store.slot(name), 1, index, bytes([step]))
            assert read(arena, store.slot(name), 1, index, 1) == bytes([step])
            store.commit(name, [step])
            calls.append(arena.num_calls - before)
            if step % 10 == 9:
                store.release(name)
        mapper.join()
        assert sum(calls) > 0
        store.audit()
    finally:
        mapper.close()
        arena.close()
