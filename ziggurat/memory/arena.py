# SPDX-License-Identifier: Apache-2.0
"""Arenas: page-aligned address space whose pages come when they are first written and go when they are discarded."""

from __future__ import annotations

import ctypes
import mmap
from types import TracebackType

from ziggurat.errors import DoesNotFit
from ziggurat.units import format_bytes, round_up

PAGE_BYTES = mmap.PAGESIZE
_MINCORE_STEP_PAGES = 1 << 18


class Arena:
    """A private anonymous mapping. Nothing is touched here: an arena costs address space until somebody writes to it.

    Args:
        num_bytes: rounded up to whole pages.
        name: for messages.

    Attributes:
        address: of the first byte, a multiple of the page size. Valid until `close`.
        buffer: all bytes, writable, zero until written.

    Raises:
        DoesNotFit: the operating system has not that much address space for us.
    """

    def __init__(self, num_bytes: int, name: str) -> None:
        assert num_bytes > 0, f"arena {name}: {num_bytes} bytes"
        self.name = name
        self.num_bytes = round_up(num_bytes, PAGE_BYTES)
        try:
            self._map = mmap.mmap(-1, self.num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except (OSError, OverflowError) as error:
            raise DoesNotFit(
                f"the operating system refuses {format_bytes(self.num_bytes)} of address space for {name} ({error}): "
                "lower --memory, or raise the limit (ulimit -v, vm.overcommit_memory)",
                needed_bytes=self.num_bytes,
                available_bytes=0,
            ) from error
        self.buffer = memoryview(self._map)
        # The ctypes object would hold the mapping open; only its address is kept.
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self.is_open = True

    def discard(self, offset: int, num_bytes: int) -> int:
        """Give back the pages that lie wholly inside ``[offset, offset + num_bytes)``; they read as zero afterwards.

        Returns:
            The bytes of those pages (also of pages that had never been touched).
        """
        assert self.is_open and offset >= 0 and 0 <= num_bytes <= self.num_bytes - offset, (
            f"arena {self.name}: [{offset}, {offset + num_bytes}) is not inside [0, {self.num_bytes})"
        )
        start = round_up(offset, PAGE_BYTES)
        end = (offset + num_bytes) // PAGE_BYTES * PAGE_BYTES
        if end <= start:
            return 0
        self._map.madvise(mmap.MADV_DONTNEED, start, end - start)
        return end - start

    def advise_huge(self) -> bool:
        """Ask for huge pages: fewer TLB misses, but the first write to any byte takes a whole huge page.

        Returns:
            False when this kernel has none.
        """
        assert self.is_open, f"arena {self.name} is closed"
        try:
            self._map.madvise(mmap.MADV_HUGEPAGE)
        except OSError:
            return False
        return True

    def resident_bytes(self) -> int:
        """Bytes of pages that are in RAM now. A page that was only read counts too, although it is the shared zero page.

        Asks mincore, not smaps: the kernel merges neighbouring mappings, and smaps then shows their sum.
        """
        assert self.is_open, f"arena {self.name} is closed"
        mincore = ctypes.CDLL(None, use_errno=True).mincore
        mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p)
        num_resident = 0
        for first in range(0, self.num_bytes // PAGE_BYTES, _MINCORE_STEP_PAGES):
            num_pages = min(_MINCORE_STEP_PAGES, self.num_bytes // PAGE_BYTES - first)
            pages = ctypes.create_string_buffer(num_pages)
            if mincore(self.address + first * PAGE_BYTES, num_pages * PAGE_BYTES, pages) != 0:
                raise OSError(ctypes.get_errno(), f"mincore of arena {self.name}")
            num_resident += num_pages - pages.raw.count(0)
        return num_resident * PAGE_BYTES

    def close(self) -> None:
        """Give all pages back, at once. The address space goes too, or with the last array that still looks at ``buffer``."""
        if not self.is_open:
            return
        self.discard(0, self.num_bytes)
        self.is_open = False
        try:
            self.buffer.release()
            self._map.close()
        except BufferError:
            # Somebody still has an array over our bytes (it now reads zeros); the mapping lives as long as that array.
            return

    def __enter__(self) -> Arena:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
