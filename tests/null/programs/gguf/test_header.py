# SPDX-License-Identifier: Apache-2.0
"""Headers of GGUF files: what the `gguf` package writes is read, and whatever is wrong is one error of ours."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ziggurat.errors import ModelError, UnsupportedFeature
from ziggurat.programs.gguf.header import GgufArray, is_gguf, read_gguf_header

texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
VALUES = {
    "uint32": st.integers(0, 2**32 - 1),
    "int32": st.integers(-(2**31), 2**31 - 1),
    "uint64": st.integers(0, 2**64 - 1),
    "float64": st.floats(allow_nan=False),
    "bool": st.booleans(),
    "string": texts,
}
ARRAYS = st.lists(texts, min_size=1, max_size=9) | st.lists(st.integers(-9, 9), min_size=1, max_size=9)


def write(path: Path, pairs: dict[str, tuple[str, Any]], tensors: dict[str, np.ndarray] | None = None) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    for key, (kind, value) in pairs.items():
        getattr(writer, f"add_{kind}")(key, value)
    for name, values in (tensors or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@given(st.data())
def test_what_the_package_writes_is_read(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    kinds = st.sampled_from([*VALUES, "array"])
    drawn = data.draw(st.dictionaries(st.text("abc.", min_size=1, max_size=8), kinds, max_size=6))
    pairs = {f"x.{key}": (kind, data.draw(VALUES.get(kind, ARRAYS))) for key, kind in drawn.items()}
    tensors = {"a.weight": np.arange(12, dtype=np.float32).reshape(3, 4), "b": np.ones(5, np.float16)}
    path = write(tmp_path_factory.mktemp("gguf") / "x.gguf", pairs, tensors)
    header = read_gguf_header(path)
    for key, (kind, value) in pairs.items():
        assert (header.array(key) if kind == "array" else header.metadata[key]) == value
    assert {name: tensor.shape for name, tensor in header.tensors.items()} == {"a.weight": (3, 4), "b": (5,)}
    blob = path.read_bytes()
    for name, values in tensors.items():
        start = header.tensors[name].offset
        assert blob[start : start + values.nbytes] == values.tobytes()
    assert header.header_bytes <= header.tensors["a.weight"].offset


@pytest.fixture(scope="module")
def blob(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    pairs = {"t": ("array", ["ab", "c"]), "n": ("array", [1, 2]), "s": ("string", "text"), "f": ("float32", 1.5)}
    return write(tmp_path_factory.mktemp("g") / "x.gguf", pairs, {"w": np.ones((2, 32), np.float32)}).read_bytes()


def test_every_truncation_of_the_header_is_one_error(blob: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(blob)
    header = read_gguf_header(path)
    last = header.tensors["w"].offset - 40
    for size in range(last):
        path.write_bytes(blob[:size])
        with pytest.raises(ModelError):
            read_gguf_header(path)


@given(place=st.integers(0, 400), value=st.integers(0, 255))
def test_a_changed_byte_is_read_or_refused(
    blob: bytes, tmp_path_factory: pytest.TempPathFactory, place: int, value: int
) -> None:
    path = tmp_path_factory.mktemp("g") / "x.gguf"
    damaged = bytearray(blob)
    damaged[place % len(blob)] = value
    path.write_bytes(damaged)
    try:
        header = read_gguf_header(path)
        for key, found in header.metadata.items():
            if isinstance(found, GgufArray):
                header.array(key)
    except (ModelError, UnsupportedFeature) as error:
        assert str(path) in str(error)


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (b"", "0 bytes"),
        (b"PK\x03\x04" + bytes(60), "instead of b'GGUF'"),
        (b"GGUF" + struct.pack("<I", 1) + bytes(60), "version 1"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(60), "big-endian"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**40, 1), "1099511627776 tensors"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 2**63) + bytes(9), "truncated"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"k" + struct.pack("<I", 99), "value type 99"),
    ],
)
def test_what_is_wrong_is_said(head: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(head)
    with pytest.raises((ModelError, UnsupportedFeature), match=words):
        read_gguf_header(path)


def test_one_part_of_a_model_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "x.gguf", {"split.count": ("uint16", 3)})
    with pytest.raises(UnsupportedFeature, match="one of 3 parts"):
        read_gguf_header(path)


def test_a_file_is_known_by_its_name_or_its_first_bytes(tmp_path: Path) -> None:
    for name, content, expected in (("a.gguf", b"", True), ("b", b"GGUF..", True), ("c.bin", b"GGU", False)):
        (tmp_path / name).write_bytes(content)
        assert is_gguf(tmp_path / name) is expected
    assert not is_gguf(tmp_path)
