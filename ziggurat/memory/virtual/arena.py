# SPDX-License-Identifier: Apache-2.0
"""Address space that is reserved once, far beyond RAM, and mapped piece by piece onto one pool of physical memory.

The pool is an anonymous file in memory (memfd); a page of it may be mapped at several addresses. A plane is what lies contiguously in a
slot (the keys of one layer, say); block ``b`` is one page group in every plane, and all of them are mapped together::

    memfd            plane 0 [ b0 | b1 | b2 | .. ]  plane 1 [ b0 | b1 | .. ]  ..
    address space    slot 0: plane 0 [ index 0 | 1 | .. ] plane 1 [ .. ]  ..   slot 1: ..

Blocks that follow each other in the pool and in a slot become one mapping of the kernel: planes are apart so that neighbours merge, and
`vm.max_map_count` (65,530 by default) is not reached. On a GPU page tables and physical handles cost other amounts; the decisions are
the same (`ziggurat.memory.virtual.slots`).
"""

from __future__ import annotations

import ctypes
import math
import mmap
import os
from collections.abc import Iterable, Sequence

from ziggurat.errors import ConfigError, DoesNotFit
from ziggurat.memory.arena import PAGE_BYTES
from ziggurat.memory.virtual.slots import UNMAPPED, MapRun
from ziggurat.units import format_bytes

ADDRESS_BYTES = 1 << 47
"""Of a process on x86-64: 128 TiB."""
_NO_ACCESS = 0
_MAP_FIXED, _MAP_NORESERVE, _MAP_POPULATE = 0x10, 0x4000, 0x8000
_CLEARED_AT_ONCE = 1 << 20
_PUNCH_HOLE_KEEP_SIZE = 0x03
_FAILED = ctypes.c_void_p(-1).value


def page_group_bytes(tokens: int, token_bytes: int) -> int:
    """Bytes of a page group of so many tokens.

    Raises:
        ConfigError: not whole pages of the machine; names the nearest counts of tokens that are.
    """
    num_bytes = tokens * token_bytes
    if tokens > 0 and num_bytes % PAGE_BYTES == 0:
        return num_bytes
    step = PAGE_BYTES // math.gcd(PAGE_BYTES, token_bytes)
    lower, upper = tokens // step * step, (tokens // step + 1) * step
    near = f"{lower} or {upper}" if lower else f"{upper}"
    raise ConfigError(
        f"a page group of {tokens} tokens of {token_bytes} bytes each takes {num_bytes} bytes, which is not a multiple of "
        f"{PAGE_BYTES}: the nearest legal block sizes are {near} tokens"
    )


class VirtualArena:
    """Slots of address space over a pool of blocks. Nothing is in memory until a mapped page is written (or mapped with ``populate``).

    A mapping must not change while somebody reads that range: whoever runs kernels carries out `apply` between steps. Not thread-safe, but
    the system calls release the interpreter's lock.

    Args:
        num_slots, slot_blocks: the reservation.
        num_planes: contiguous ranges per slot.
        group_bytes: of one block in one plane; whole pages.
        num_blocks: of the pool.

    Attributes:
        num_calls: mmap calls so far.

    Raises:
        ConfigError: beyond the address space of a process, or a group that is not whole pages.
        DoesNotFit: the operating system refuses.
    """

    def __init__(self, *, num_slots: int, slot_blocks: int, num_planes: int, group_bytes: int, num_blocks: int) -> None:
        if group_bytes <= 0 or group_bytes % PAGE_BYTES:
            raise ConfigError(f"page groups of {group_bytes} bytes are not whole pages of {PAGE_BYTES}")
        self.plane_bytes = slot_blocks * group_bytes
        self.slot_bytes = num_planes * self.plane_bytes
        self.reserved_bytes = num_slots * self.slot_bytes
        if self.reserved_bytes >= ADDRESS_BYTES:
            raise ConfigError(
                f"{num_slots} slots of {format_bytes(self.slot_bytes)} take {format_bytes(self.reserved_bytes)} of address space, a "
                f"process has {format_bytes(ADDRESS_BYTES)}: lower --max-num-seqs or --max-model-len"
            )
        self.num_slots, self.slot_blocks, self.num_planes = num_slots, slot_blocks, num_planes
        self.group_bytes, self.num_blocks = group_bytes, num_blocks
        self.num_calls = 0
        self._libc = _libc()
        self._file = os.memfd_create("ziggurat-kv")
        os.ftruncate(self._file, num_planes * num_blocks * group_bytes)
        self.address = self._map(None, self.reserved_bytes, _NO_ACCESS, None)

    def apply(self, runs: Iterable[MapRun], *, populate: bool = False) -> None:
        """Carry out changes of the mapping; with ``populate`` the page tables are filled too, so that the first touch is no fault."""
        for run in runs:
            assert 0 <= run.slot < self.num_slots and run.index + run.num_blocks <= self.slot_blocks, (
                f"{run} is outside"
            )
            size = run.num_blocks * self.group_bytes
            for plane in range(self.num_planes):
                address = self.plane_address(run.slot, plane) + run.index * self.group_bytes
                if run.block == UNMAPPED:
                    self._map(address, size, _NO_ACCESS, None)
                else:
                    self._map(
                        address,
                        size,
                        mmap.PROT_READ | mmap.PROT_WRITE,
                        self._offset(plane, run.block),
                        populate=populate,
                    )

    def plane_address(self, slot: int, plane: int) -> int:
        """Where a plane of a slot begins."""
        return self.address + slot * self.slot_bytes + plane * self.plane_bytes

    def copy_block(self, source: int, destination: int) -> None:
        """Copy a block in every plane (copy-on-write), whatever is mapped."""
        for plane in range(self.num_planes):
            data = os.pread(self._file, self.group_bytes, self._offset(plane, source))
            os.pwrite(self._file, data, self._offset(plane, destination))

    def discard(self, blocks: Sequence[int]) -> None:
        """Give the memory of blocks back to the system; they read as zero afterwards, at every address."""
        for block in blocks:
            for plane in range(self.num_planes):
                code = self._libc.fallocate(
                    self._file, _PUNCH_HOLE_KEEP_SIZE, self._offset(plane, block), self.group_bytes
                )
                if code != 0:
                    raise OSError(ctypes.get_errno(), f"punching a hole for block {block}")

    def commit(self) -> None:
        """Take the memory of all blocks now, as a GPU's handles are made at start: mapping a block then fills page tables only.

        Raises:
            DoesNotFit: the system has not that much memory.
        """
        num_bytes = self.num_planes * self.num_blocks * self.group_bytes
        if self._libc.fallocate(self._file, 0, 0, num_bytes) != 0:
            error = os.strerror(ctypes.get_errno())
            raise DoesNotFit(
                f"{format_bytes(num_bytes)} of KV are not to be had ({error}): lower --memory",
                needed_bytes=num_bytes,
                available_bytes=0,
            )
        # The system clears a page when it is first touched, which would fall into the first step that maps it.
        zeros = bytes(_CLEARED_AT_ONCE)
        for start in range(0, num_bytes, _CLEARED_AT_ONCE):
            os.pwrite(self._file, zeros[: num_bytes - start], start)

    def committed_bytes(self) -> int:
        """Physical memory of the pool now."""
        return os.fstat(self._file).st_blocks * 512

    def num_mappings(self) -> int:
        """Mappings of the kernel in the reservation."""
        count = 0
        with open("/proc/self/maps") as lines:
            for line in lines:
                start, _, end = line.split(" ", 1)[0].partition("-")
                count += int(start, 16) < self.address + self.reserved_bytes and int(end, 16) > self.address
        return count

    def close(self) -> None:
        """Give address space and memory back. No array may look at a slot any more."""
        if self._file >= 0:
            self._libc.munmap(self.address, self.reserved_bytes)
            os.close(self._file)
            self._file = -1

    def _offset(self, plane: int, block: int) -> int:
        assert 0 <= block < self.num_blocks, f"block {block} of {self.num_blocks}"
        return (plane * self.num_blocks + block) * self.group_bytes

    def _map(
        self, address: int | None, num_bytes: int, access: int, offset: int | None, *, populate: bool = False
    ) -> int:
        flags = _MAP_NORESERVE | (_MAP_FIXED if address is not None else 0) | (_MAP_POPULATE if populate else 0)
        flags |= mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS if offset is None else mmap.MAP_SHARED
        self.num_calls += 1
        mapped = self._libc.mmap(address, num_bytes, access, flags, -1 if offset is None else self._file, offset or 0)
        if mapped is None or mapped == _FAILED:
            error = os.strerror(ctypes.get_errno())
            raise DoesNotFit(
                f"the operating system refuses to map {format_bytes(num_bytes)} of KV ({error}): raise vm.max_map_count or ulimit -v, "
                "or lower --max-num-seqs",
                needed_bytes=num_bytes,
                available_bytes=0,
            )
        return int(mapped)


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.argtypes = (
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_longlong,
    )
    libc.mmap.restype = ctypes.c_void_p
    libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_longlong, ctypes.c_longlong)
    return libc
