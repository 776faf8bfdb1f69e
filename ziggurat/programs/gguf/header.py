# SPDX-License-Identifier: Apache-2.0
"""The header of a GGUF file: metadata and where each tensor lies. Nothing of the tensors themselves is read.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, little-endian)::

    "GGUF" version u32, tensors u64, pairs u64 | pairs: key, type u32, value | tensors: name, dims, type u32, offset u64 | padding | data
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ziggurat.errors import ModelError, UnsupportedFeature

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_DEFAULT_ALIGNMENT_BYTES = 32
_MAX_DIMS = 4
# The least that one pair (key length, type, one byte) and one tensor (name length, dims, one dim, type, offset) can take.
_MIN_PAIR_BYTES, _MIN_TENSOR_BYTES = 13, 32

Scalar = str | int | float | bool


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufArray:
    """An array of the metadata, left in the file: vocabularies are long, and most readers do not want them."""

    kind: int
    count: int
    offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufTensor:
    """One tensor: its type by ggml's number, its shape as in Hugging Face (slowest first), the offset in the file in bytes."""

    type_id: int
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufHeader:
    """What stands before the tensors' bytes.

    Attributes:
        header_bytes: how much that is; nearly all of it vocabulary.
    """

    path: Path
    file_bytes: int
    header_bytes: int
    metadata: Mapping[str, Scalar | GgufArray]
    tensors: Mapping[str, GgufTensor]

    def array(self, key: str) -> list[Scalar]:
        """The values of an array of the metadata, read now; empty if there is none.

        Raises:
            ModelError: it is there and is no array, or the file changed.
        """
        found = self.metadata.get(key)
        if found is None:
            return []
        if not isinstance(found, GgufArray):
            raise ModelError(f"{self.path}: {key} must be an array, got {found!r}")
        with _opened(self.path) as cursor:
            cursor.position = found.offset
            return cursor.values(found.kind, found.count, key)


def is_gguf(path: Path) -> bool:
    """Whether a file is meant as GGUF: by its name, or by its first bytes.

    Raises:
        ModelError: it cannot be opened.
    """
    if not path.is_file():
        return False
    if path.suffix == ".gguf":
        return True
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error


def read_gguf_header(path: Path) -> GgufHeader:
    """Metadata and tensors of one file.

    Raises:
        ModelError: not GGUF, truncated or damaged.
        UnsupportedFeature: a version that is not read, big-endian, or one part of a split model.
    """
    with _opened(path) as cursor:
        num_tensors, num_pairs = _read_counts(cursor)
        metadata: dict[str, Scalar | GgufArray] = {}
        for _ in range(num_pairs):
            key = cursor.string("a metadata key")
            if key in metadata:
                raise ModelError(f"{path} is damaged: metadata key {key!r} is there twice")
            metadata[key] = cursor.value(key)
        raw = dict(_read_tensor(cursor) for _ in range(num_tensors))
        if len(raw) != num_tensors:
            raise ModelError(f"{path} is damaged: {num_tensors} tensors with {len(raw)} different names")
        start = _data_start(path, metadata, cursor.position)
        size = cursor.size
    if metadata.get("split.count", 1) not in (0, 1):
        raise UnsupportedFeature(
            f"{path} is one of {metadata['split.count']} parts of a model; join them with llama.cpp's `gguf-split --merge`",
            feature="gguf:split",
        )
    tensors = {n: GgufTensor(type_id=t.type_id, shape=t.shape, offset=start + t.offset) for n, t in raw.items()}
    return GgufHeader(path=path, file_bytes=size, header_bytes=start, metadata=metadata, tensors=tensors)


def _read_counts(cursor: _Cursor) -> tuple[int, int]:
    path, size = cursor.path, cursor.size
    magic = bytes(cursor.data[:4])
    if magic != MAGIC:
        raise ModelError(f"{path} is not GGUF: it begins with {magic!r} instead of {MAGIC!r}")
    cursor.position = 4
    (version,) = cursor.numbers("I", 1, "the version")
    if version not in _VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        what = "is big-endian" if swapped in _VERSIONS else f"has GGUF version {version}"
        raise UnsupportedFeature(f"{path} {what}; little-endian versions 2 and 3 are read", feature="gguf:version")
    num_tensors, num_pairs = cursor.numbers("Q", 2, "the counts")
    least = num_tensors * _MIN_TENSOR_BYTES + num_pairs * _MIN_PAIR_BYTES
    if least > size:
        raise ModelError(
            f"{path} is truncated or damaged: {num_tensors} tensors and {num_pairs} metadata pairs in a file of {size} bytes"
        )
    return num_tensors, num_pairs


def _read_tensor(cursor: _Cursor) -> tuple[str, GgufTensor]:
    name = cursor.string("a tensor's name")
    (num_dims,) = cursor.numbers("I", 1, f"tensor {name!r}")
    if not 1 <= num_dims <= _MAX_DIMS:
        raise ModelError(f"{cursor.path} is damaged: tensor {name!r} has {num_dims} dimensions")
    dims = cursor.numbers("Q", num_dims, f"tensor {name!r}")
    (type_id,) = cursor.numbers("I", 1, f"tensor {name!r}")
    (offset,) = cursor.numbers("Q", 1, f"tensor {name!r}")
    return name, GgufTensor(type_id=type_id, shape=tuple(reversed(dims)), offset=offset)


def _data_start(path: Path, metadata: Mapping[str, Scalar | GgufArray], end: int) -> int:
    alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT_BYTES)
    if isinstance(alignment, bool) or not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise ModelError(f"{path}: general.alignment must be a power of two, got {alignment!r}")
    return -(-end // alignment) * alignment


@contextmanager
def _opened(path: Path) -> Iterator[_Cursor]:
    # Mapped, because a vocabulary of 150,000 strings is walked over; given back before anything large is loaded.
    try:
        with path.open("rb") as file:
            if not file.read(1):
                raise ModelError(f"{path} is truncated: 0 bytes, not even a GGUF header")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                yield _Cursor(path, data)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error


class _Cursor:
    """Reads values one after another, and says what was being read when the file ends."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.size, self.position = path, data, len(data), 0

    def _advance(self, num_bytes: int, what: str) -> int:
        start = self.position
        self.position += self._fits(num_bytes, what)
        return start

    def numbers(self, code: str, count: int, what: str) -> list[Any]:
        layout = f"<{count}{code}"
        return list(struct.unpack_from(layout, self.data, self._advance(struct.calcsize(layout), what)))

    def string(self, what: str) -> str:
        (length,) = self.numbers("Q", 1, what)
        start = self._advance(length, what)
        try:
            return self.data[start : start + length].decode("utf-8")
        except UnicodeDecodeError as error:
            raise ModelError(f"{self.path} is damaged: {what} is not UTF-8 ({error})") from error

    def value(self, key: str) -> Scalar | GgufArray:
        (kind,) = self.numbers("I", 1, key)
        if kind != _ARRAY:
            return self.values(kind, 1, key)[0]
        (kind,) = self.numbers("I", 1, key)
        (count,) = self.numbers("Q", 1, key)
        array = GgufArray(kind=kind, count=count, offset=self.position)
        self._skip(array, key)
        return array

    def values(self, kind: int, count: int, key: str) -> list[Scalar]:
        """``count`` values of one type."""
        if kind == _STRING:
            return [self.string(key) for _ in range(count)]
        return list(self.numbers(self._code(kind, key), count, key))

    def _code(self, kind: int, key: str) -> str:
        if kind not in _SCALARS:
            raise ModelError(f"{self.path} is damaged: {key} has value type {kind}, which GGUF does not have")
        return _SCALARS[kind]

    def _skip(self, array: GgufArray, key: str) -> None:
        if array.kind != _STRING:
            self._advance(array.count * struct.calcsize(f"<{self._code(array.kind, key)}"), key)
            return
        if array.count * 8 > self.size - self.position:
            raise ModelError(
                f"{self.path} is truncated: {key} has {array.count} strings, the file ends at byte {self.size}"
            )
        unpack, data, position, last = struct.Struct("<Q").unpack_from, self.data, self.position, self.size - 8
        for _ in range(array.count):
            if position > last:
                break
            position += 8 + unpack(data, position)[0]
        else:
            self.position += self._fits(position - self.position, key)
            return
        self._fits(position + 8 - self.position, key)

    def _fits(self, num_bytes: int, what: str) -> int:
        end = self.position + num_bytes
        if end > self.size:
            raise ModelError(f"{self.path} is truncated: {what} ends at byte {end}, the file has {self.size}")
        return num_bytes
