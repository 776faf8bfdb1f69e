# SPDX-License-Identifier: Apache-2.0
"""All layers of a model as the kernels take them, packed one after the other in a file: what is streamed in every step, and written once.

::

    [ header: JSON, padded to whole pages | layer 0 | layer 1 | .. ]      every layer begins on a page

The name has the model's fingerprint and the format, so that files of other models lie beside it. The header says where each layer is and
its CRC-32; a file is renamed to its name when it is whole and on the disk. A layer is checked when it is read for the first time.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ziggurat.durable import sync_folder
from ziggurat.errors import ConfigError, ModelError
from ziggurat.memory.arena import PAGE_BYTES
from ziggurat.units import format_bytes, round_up

VERSION = 1
SUFFIX = ".zlayers"
_HEADER_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredLayer:
    """Where a layer lies in the file, and its CRC-32."""

    offset: int
    num_bytes: int
    crc32: int


def layer_file_path(folder: Path, fingerprint: str, format_name: str) -> Path:
    """The file of a model in a folder."""
    return folder / f"{fingerprint}-{format_name}{SUFFIX}"


def read_layer_table(path: Path, sizes: Sequence[int]) -> tuple[StoredLayer, ...] | None:
    """The layers of a whole file; None if there is none.

    Args:
        sizes: bytes of every layer, as the Plan has them.

    Raises:
        ConfigError: a file of another version, or one that does not hold these layers; says to delete it.
    """
    if not path.exists():
        return None
    try:
        with path.open("rb") as file:
            header = json.loads(file.read(_HEADER_BYTES).split(b"\n", 1)[0])
        version, layers = header["version"], [StoredLayer(**each) for each in header["layers"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is no file of packed layers ({error}): delete it, it is made again") from error
    if version != VERSION:
        raise ConfigError(f"{path} has version {version}, this Ziggurat writes {VERSION}: delete it, it is made again")
    if [layer.num_bytes for layer in layers] != list(sizes) or path.stat().st_size < layers[-1].offset + sizes[-1]:
        raise ConfigError(f"{path} is cut off or of another model: delete it, it is made again")
    return tuple(layers)


def write_layer_file(path: Path, sizes: Sequence[int], fill: Callable[[int], memoryview]) -> tuple[StoredLayer, ...]:
    """Make a file; an interrupted one leaves no trace under its name.

    Args:
        fill: packs a layer and returns its bytes, valid until the next call.

    Raises:
        ConfigError: the folder cannot be written, or the disk is full; says how much is needed.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    layers: list[StoredLayer] = []
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            offset = _HEADER_BYTES
            for number, num_bytes in enumerate(sizes):
                data = fill(number)
                assert len(data) == num_bytes and num_bytes % PAGE_BYTES == 0
                file.seek(offset)
                file.write(data)
                layers.append(StoredLayer(offset=offset, num_bytes=num_bytes, crc32=zlib.crc32(data)))
                offset += round_up(num_bytes, PAGE_BYTES)
            file.seek(0)
            file.write(_header(layers))
            file.flush()
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        os.replace(partial, path)
        sync_folder(path.parent)
    except OSError as error:
        needed = format_bytes(_HEADER_BYTES + sum(sizes))
        raise ConfigError(
            f"cannot write the packed layers to {path}: {error.strerror or error}. They take {needed}: make room, or name another "
            "--offload-folder"
        ) from error
    finally:
        if partial.exists():
            partial.unlink()
    return tuple(layers)


def _header(layers: Sequence[StoredLayer]) -> bytes:
    content: dict[str, Any] = {
        "version": VERSION,
        "layers": [{"offset": each.offset, "num_bytes": each.num_bytes, "crc32": each.crc32} for each in layers],
    }
    header = json.dumps(content).encode() + b"\n"
    assert len(header) <= _HEADER_BYTES, "too many layers for the header"
    return header


class LayerChecks:
    """Checks each layer when it is read for the first time.

    Args:
        numbers: which layer of the file each part is.
    """

    def __init__(self, path: Path, layers: Sequence[StoredLayer], numbers: Sequence[int]) -> None:
        self._path, self._layers, self._numbers = path, layers, numbers
        self._checked: set[int] = set()

    def __call__(self, part: int, data: memoryview) -> None:
        """
        Raises:
            ModelError: the bytes are not those that were written.
        """
        if part in self._checked:
            return
        number = self._numbers[part]
        check_layer(self._path, number, self._layers[number], data)
        self._checked.add(part)


def check_layer(path: Path, number: int, layer: StoredLayer, data: memoryview) -> None:
    """
    Raises:
        ModelError: the bytes are not those that were written.
    """
    found = zlib.crc32(data)
    if found != layer.crc32:
        raise ModelError(
            f"layer {number} in {path} is damaged (CRC-32 {found:08x}, written was {layer.crc32:08x}): delete the file, it is made again "
            "from the checkpoint"
        )
