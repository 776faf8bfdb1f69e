# SPDX-License-Identifier: Apache-2.0
"""Files read past the page cache, and parts that pass through few places: right bytes in the right order, errors that can be mended."""

from __future__ import annotations

import mmap
import os
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ziggurat.memory.arena import PAGE_BYTES, Arena
from ziggurat.memory.tiers.direct_file import DirectFile
from ziggurat.memory.tiers.window import Part, StreamWindow


def write(path: Path, num_pages: int, seed: int = 1) -> bytes:
    data = random.Random(seed).randbytes(num_pages * PAGE_BYTES)
    path.write_bytes(data)
    return data


@pytest.mark.parametrize("request_pages", [1, 3, 1024])
def test_all_bytes_come_whatever_the_requests(tmp_path: Path, request_pages: int) -> None:
    data = write(tmp_path / "x", 37)
    file = DirectFile(tmp_path / "x", num_requests=3, request_bytes=request_pages * PAGE_BYTES)
    with Arena(40 * PAGE_BYTES, "target") as arena:
        requests = file.read(5 * PAGE_BYTES, arena.buffer[: 30 * PAGE_BYTES])
        requests.wait()
        assert requests.is_done and bytes(arena.buffer[: 30 * PAGE_BYTES]) == data[5 * PAGE_BYTES : 35 * PAGE_BYTES]
        assert bytes(arena.buffer[30 * PAGE_BYTES :]) == bytes(10 * PAGE_BYTES)
        assert file.num_read_bytes == 30 * PAGE_BYTES
    file.close()


def cached_pages(path: Path) -> int:
    """Pages of a file in the page cache, by mincore."""
    import ctypes

    size = path.stat().st_size
    with path.open("r+b") as file, mmap.mmap(file.fileno(), size) as mapped:
        pages = ctypes.create_string_buffer(size // PAGE_BYTES)
        holder = ctypes.c_char.from_buffer(mapped)
        found = ctypes.CDLL(None).mincore(ctypes.c_void_p(ctypes.addressof(holder)), ctypes.c_size_t(size), pages)
        del holder
        assert found == 0
        return sum(byte & 1 for byte in pages.raw[: size // PAGE_BYTES])


def test_the_page_cache_keeps_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x"
    write(path, 600)
    with path.open("rb") as written:
        os.fsync(written.fileno())
        os.posix_fadvise(written.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    file = DirectFile(path)
    with Arena(600 * PAGE_BYTES, "target") as arena:
        file.read(0, arena.buffer[: 600 * PAGE_BYTES]).wait()
    file.close()
    assert cached_pages(path) <= 60, "read-ahead apart, nothing"


def test_a_file_that_ends_early_says_where(tmp_path: Path) -> None:
    write(tmp_path / "x", 3)
    file = DirectFile(tmp_path / "x")
    with (
        Arena(8 * PAGE_BYTES, "target") as arena,
        pytest.raises(OSError, match="ends at byte 12288, 8192 bytes are missing"),
    ):
        file.read(0, arena.buffer[: 5 * PAGE_BYTES]).wait()
    file.close()
    with pytest.raises(FileNotFoundError):
        DirectFile(tmp_path / "y")


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=9),
    num_places=st.integers(1, 4),
    rounds=st.integers(1, 4),
    broken_at=st.none() | st.integers(0, 12),
)
def test_parts_come_in_order_round_after_round(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], num_places: int, rounds: int, broken_at: int | None
) -> None:
    """Whoever breaks off in the middle begins again at the first part."""
    path = tmp_path_factory.mktemp("window") / "x"
    data = write(path, sum(sizes))
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    file = DirectFile(path, num_requests=2, request_bytes=2 * PAGE_BYTES)
    with Arena(num_places * 5 * PAGE_BYTES, "places") as arena:
        parts = [
            Part(
                offset=start * PAGE_BYTES,
                place=arena.buffer[index % num_places * 5 * PAGE_BYTES :][: size * PAGE_BYTES],
                place_number=index % num_places,
            )
            for index, (start, size) in enumerate(zip(starts, sizes, strict=True))
        ]
        checked: list[int] = []
        window = StreamWindow(file, parts, lambda number, _: checked.append(number))
        window.start()
        count = 0
        for _ in range(rounds):
            for number, (start, size) in enumerate(zip(starts, sizes, strict=True)):
                window.acquire(number)
                assert bytes(parts[number].place) == data[start * PAGE_BYTES : (start + size) * PAGE_BYTES]
                if count == broken_at:
                    window.start()
                    count += 1
                    break
                window.release(number)
                count += 1
        window.stop()
        assert len(checked) == count
        parts.clear()
    file.close()


def test_a_failed_part_is_reported_and_the_next_round_can_succeed(tmp_path: Path) -> None:
    data = write(tmp_path / "x", 4)
    file = DirectFile(tmp_path / "x")
    with Arena(2 * PAGE_BYTES, "places") as arena:
        parts = [
            Part(offset=number * PAGE_BYTES, place=arena.buffer[:PAGE_BYTES], place_number=0) for number in range(4)
        ]
        window = StreamWindow(file, parts)
        window.start()
        window.acquire(0)
        os.truncate(tmp_path / "x", 2 * PAGE_BYTES)
        window.release(0)
        window.acquire(1)
        window.release(1)
        with pytest.raises(OSError, match="are missing"):
            window.acquire(2)
        (tmp_path / "x").write_bytes(data)
        window.start()
        for number in range(4):
            window.acquire(number)
            assert bytes(parts[number].place) == data[number * PAGE_BYTES :][:PAGE_BYTES]
            window.release(number)
        window.stop()
        parts.clear()
    file.close()
