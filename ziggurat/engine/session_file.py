# SPDX-License-Identifier: Apache-2.0
"""A session's tokens and KV in a file: whole blocks as they lie in the pools, each with its CRC-32.

::

    header: one line of JSON | padding to a page | block 0 of every group | block 1 of every group | ..

A file is renamed to its name when it is whole and on the disk. What it is good for stands in the header: another model, KV format or block
size is refused, a damaged block ends what is restored before it.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ziggurat.durable import sync_folder
from ziggurat.errors import ConfigError, RequestError
from ziggurat.units import format_bytes

VERSION = 2
SUFFIX = ".zsession"
_MAX_HEADER_BYTES = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionHead:
    """What a file holds.

    Attributes:
        model: fingerprint of the model's files; kv_format, block_size, block_bytes: as in the Plan.
        adapter: the LoRA adapter that the KV was computed with, by its fingerprint; "" for the base model.
        salt: requests of that salt find it.
        token_ids: of the whole blocks.
        crc32: of each block, all groups together.
    """

    model: str
    adapter: str
    salt: str
    kv_format: str
    block_size: int
    block_bytes: tuple[int, ...]
    token_ids: tuple[int, ...]
    crc32: tuple[int, ...]


Blocks = Sequence[memoryview]
"""A block of every group."""


def write_session(path: Path, head: SessionHead, blocks: Sequence[Blocks]) -> int:
    """Write a file; an older one of that name stays until the new one is on the disk. Returns its bytes.

    Raises:
        ConfigError: the folder cannot be written, or the disk is full.
    """
    line = json.dumps({"version": VERSION, **asdict(head)}, separators=(",", ":")).encode() + b"\n"
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(line)
            for block in blocks:
                for part in block:
                    file.write(part)
            file.flush()
            os.fsync(file.fileno())
            num_bytes = file.tell()
        os.replace(partial, path)
        sync_folder(path.parent)
    except OSError as error:
        raise ConfigError(
            f"cannot write {path}: {error.strerror or error}; the session takes {format_bytes(sum(head.block_bytes) * len(blocks))}"
        ) from error
    finally:
        if partial.exists():
            partial.unlink()
    return num_bytes


def checksum(block: Blocks) -> int:
    """CRC-32 of a block of every group."""
    value = 0
    for part in block:
        value = zlib.crc32(part, value)
    return value


def read_session(path: Path) -> tuple[SessionHead, Callable[[Blocks], bool]]:
    """The head of a file, and a function that reads the next block of every group into place: False if it is damaged or missing.

    The function closes the file after the last block, or when it has returned False.

    Raises:
        RequestError: there is no such file, it is none of ours, or of another version.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise RequestError(
            f"no session is saved under that id ({error.strerror})", param="session_id", code="session_not_found"
        ) from None
    try:
        raw: dict[str, Any] = json.loads(file.readline(_MAX_HEADER_BYTES))
        version = raw.pop("version")
        if version != VERSION:
            raise RequestError(
                f"the saved session has version {version}, this server reads {VERSION}",
                param="session_id",
                code="session_unusable",
            )
        values: Any = {key: tuple(value) if isinstance(value, list) else value for key, value in raw.items()}
        head = SessionHead(**values)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        file.close()
        raise RequestError(
            f"{path.name} is no saved session ({error})", param="session_id", code="session_unusable"
        ) from None
    except RequestError:
        file.close()
        raise
    return head, _reader(file, iter(head.crc32))


def _reader(file: BinaryIO, crc32: Iterator[int]) -> Callable[[Blocks], bool]:
    left = list(crc32)

    def read(block: Blocks) -> bool:
        is_whole = all(file.readinto(part) == len(part) for part in block)  # type: ignore[attr-defined]
        is_good = is_whole and checksum(block) == left.pop(0)
        if not is_good or not left:
            file.close()
        return is_good

    return read
