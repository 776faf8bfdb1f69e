# SPDX-License-Identifier: Apache-2.0
"""Headers of safetensors: what is damaged is named, what is missing is named, pickles are refused."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.null.programs.test_lowering import BASE
from ziggurat.errors import ModelError, ModelNotFound, UnsupportedFeature, UserError
from ziggurat.programs.architectures import build_program
from ziggurat.programs.checkpoint import match_program, read_folder, read_header, storage_format


def write(path: Path, tensors: dict[str, tuple[str, list[int]]], cut: int = 0) -> None:
    """A safetensors file of zeros, written by the format's description alone."""
    header, end = {}, 0
    for name, (dtype, shape) in tensors.items():
        size = {"F32": 4, "BF16": 2, "F16": 2, "I64": 8}[dtype]
        for n in shape:
            size *= n
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    blob = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    data = struct.pack("<Q", len(blob)) + blob + bytes(end)
    path.write_bytes(data[: len(data) - cut])


PROGRAM = build_program(BASE)
GOOD = {name: ("BF16", list(spec.shape)) for name, spec in PROGRAM.weights.items()}


def test_a_folder_in_two_shards(tmp_path):
    names = list(GOOD)
    write(tmp_path / "a.safetensors", {n: GOOD[n] for n in names[:5]})
    write(tmp_path / "b.safetensors", {n: GOOD[n] for n in names[5:]})
    shards = {n: "a.safetensors" if n in names[:5] else "b.safetensors" for n in names}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": shards}))
    found = match_program(PROGRAM, read_folder(tmp_path))
    assert set(found) == set(names)
    assert storage_format(found).name == "bf16"
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(ModelError, match="2 shards, 1 are missing: b.safetensors"):
        read_folder(tmp_path)
    index.write_text("[]")
    with pytest.raises(ModelError, match="index.json is damaged"):
        read_folder(tmp_path)


def test_missing_wrong_and_unexpected_tensors(tmp_path):
    path = tmp_path / "model.safetensors"
    write(path, {n: spec for n, spec in GOOD.items() if n != "model.norm.weight"})
    with pytest.raises(ModelError, match=r"lacks tensor 'model.norm.weight'"):
        match_program(PROGRAM, read_folder(tmp_path))
    write(path, {**GOOD, "model.norm.weight": ("BF16", [63])})
    with pytest.raises(ModelError, match=r"shape \[63\], config.json implies \[64\]"):
        match_program(PROGRAM, read_folder(tmp_path))
    write(path, {**GOOD, "model.layers.9.mlp.up_proj.weight": ("BF16", [4, 4])})
    with pytest.raises(ModelError, match=r"1 tensors that config.json does not account for.*layers.9"):
        match_program(PROGRAM, read_folder(tmp_path))
    write(path, {**GOOD, "model.layers.0.self_attn.rotary_emb.inv_freq": ("F32", [8])})
    assert len(match_program(PROGRAM, read_folder(tmp_path))) == len(GOOD)


def test_truncated_files_and_foreign_dtypes(tmp_path):
    path = tmp_path / "model.safetensors"
    write(path, GOOD, cut=1)
    with pytest.raises(ModelError, match="is truncated: tensor"):
        read_header(path)
    path.write_bytes(b"abc")
    with pytest.raises(ModelError, match="truncated: 3 bytes"):
        read_header(path)
    path.write_bytes(struct.pack("<Q", 10**15) + b"{}")
    with pytest.raises(ModelError, match="truncated or not safetensors"):
        read_header(path)
    write(path, {"x": ("I64", [2])})
    with pytest.raises(UnsupportedFeature, match="I64"):
        read_header(path)


def test_pickles_are_refused_and_empty_folders_named(tmp_path):
    with pytest.raises(ModelNotFound, match="no \\*.safetensors"):
        read_folder(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02.")
    with pytest.raises(ModelError, match="pickle weights .pytorch_model.bin"):
        read_folder(tmp_path)


@given(st.binary(max_size=300), st.booleans())
def test_arbitrary_bytes_are_a_user_error_or_a_header(tmp_path_factory, data, prefixed):
    path = tmp_path_factory.mktemp("fuzz") / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(data)) + data if prefixed else data)
    try:
        read_header(path)
    except UserError as error:
        assert str(path) in str(error)
