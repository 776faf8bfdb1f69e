# SPDX-License-Identifier: Apache-2.0
"""``ziggurat quantize``: the file is what `serve` computes with, the report is right, nothing is overwritten unasked."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.checkpoints import write_checkpoint
from ziggurat.cli.main import main
from ziggurat.engine.config import EngineConfig
from ziggurat.engine.llm import LLM
from ziggurat.engine.sizing import open_model
from ziggurat.programs.formats import COMPUTED_BLOCKS
from ziggurat.quantization import ggml


@pytest.mark.parametrize("name", ["q8_0", "q4_0"])
def test_the_file_is_served_as_it_is_and_the_report_is_right(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, path = write_checkpoint(tmp_path / "model"), tmp_path / "small.gguf"
    arguments = ["quantize", str(folder), "-o", str(path), "--quantization", name]
    assert main([*arguments, "--format", "json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["num_bytes"] == path.stat().st_size
    source, written = open_model(EngineConfig(model=str(folder))), open_model(EngineConfig(model=str(path)))
    assert written.formats.weight == COMPUTED_BLOCKS[name]
    assert report["weight_bytes_before"] == sum(entry.num_bytes for entry in source.tensors.values())
    assert report["weight_bytes"] == sum(entry.num_bytes for entry in written.tensors.values())
    # An oracle of the errors: every tensor on its own, through the codec.
    for tensor, error in report["errors"].items():
        entry = source.tensors[tensor]
        values = np.fromfile(entry.path, np.float32, int(np.prod(entry.shape)), offset=entry.offset).reshape(
            entry.shape
        )
        packed = np.empty((entry.shape[0], COMPUTED_BLOCKS[name].num_bytes(entry.shape[1:])), np.uint8)
        ggml.encode_blocks(COMPUTED_BLOCKS[name], values, packed)
        decoded = np.empty_like(values)
        ggml.decode(COMPUTED_BLOCKS[name], packed, decoded)
        assert error == pytest.approx(float(np.linalg.norm(values - decoded) / np.linalg.norm(values)), rel=1e-4)
    assert list(report["errors"].values()) == sorted(report["errors"].values(), reverse=True)
    with LLM(str(path), memory="64MiB", max_model_len=64) as llm:
        assert llm.generate([[5, 6, 7]])[0].outputs[0].token_ids


def test_nothing_is_overwritten_unasked_and_errors_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, path = write_checkpoint(tmp_path / "model"), tmp_path / "small.gguf"
    path.write_bytes(b"mine")
    assert main(["quantize", str(folder), "-o", str(path)]) == 1
    assert "is there already" in capsys.readouterr().err and path.read_bytes() == b"mine"
    assert main(["quantize", str(folder), "-o", str(path), "--overwrite"]) == 0
    out = capsys.readouterr().out
    assert "bits per weight" in out and "largest errors" in out and path.stat().st_size > 1000
    assert main(["quantize", str(folder)]) == 2
    assert "-o FILE" in capsys.readouterr().err
    assert main(["quantize", str(path), "-o", str(tmp_path / "again.gguf")]) == 1
    assert "GGUF already" in capsys.readouterr().err
