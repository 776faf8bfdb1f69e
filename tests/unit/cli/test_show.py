# SPDX-License-Identifier: Apache-2.0
"""``ziggurat show``: folders and files, served and refused, without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.checkpoints import CHAT_TEMPLATE, CONFIGS, write_checkpoint
from ziggurat.cli.main import main
from ziggurat.engine.config import EngineConfig
from ziggurat.engine.gguf.export import export_gguf
from ziggurat.engine.gguf.options import EXPORT_FORMATS
from ziggurat.engine.sizing import open_model

ROOT = Path(__file__).parents[3]
# 300 x 64 embeddings and head; per layer q, k, v, o, two norms, three matrices of the MLP; one norm at the end.
NUM_PARAMETERS = 2 * 300 * 64 + 3 * (2 * 64 * 64 + 2 * 32 * 64 + 2 * 64 + 3 * 64 * 96) + 64


def show(capsys: pytest.CaptureFixture[str], model: Path) -> dict[str, Any]:
    assert main(["show", str(model), "--format", "json"]) == 0
    facts: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert main(["show", str(model)]) == 0
    text = capsys.readouterr().out
    assert ("can be served" in text) is facts["is_supported"]
    assert all(problem in text for problem in facts["problems"])
    return facts


def gguf(folder: Path, kind: str) -> Path:
    return export_gguf(open_model(EngineConfig(model=str(folder))), folder / f"{kind}.gguf", EXPORT_FORMATS[kind]).path


def test_a_folder(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    facts = show(capsys, write_checkpoint(tmp_path, "llama", dtype=torch.bfloat16))
    assert facts["is_supported"] and facts["kind"] == "folder" and facts["architecture"] == "LlamaForCausalLM"
    assert facts["num_parameters"] == NUM_PARAMETERS and facts["stored_bytes"] == 2 * NUM_PARAMETERS
    for key in ("parts", "formats"):
        assert sum(row["num_parameters"] for row in facts[key]) == NUM_PARAMETERS
    # Keys and values, 3 layers, 2 heads of 16, 2 bytes.
    assert facts["kv_bytes_per_token"] == 2 * 3 * 2 * 16 * 2 and facts["context_tokens"] == 256
    assert facts["tokenizer"] == {"kind": "BPE", "pre_tokenizer": "ByteLevel", "num_tokens": 262}
    assert facts["special_tokens"] == {"bos_token": "<s>", "eos_token": "</s>"}
    assert facts["chat_template"] == CHAT_TEMPLATE


def test_a_gguf_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = gguf(write_checkpoint(tmp_path, "llama"), "q8_0")
    facts = show(capsys, path)
    assert (facts["kind"], facts["stored_format"], facts["weight_format"]) == ("gguf", "q8_0", "q8_0")
    assert facts["num_parameters"] == NUM_PARAMETERS and facts["tokenizer"]["kind"] == "gpt2"
    assert facts["control_tokens"] == ["<s>", "</s>"] and facts["chat_template"] == CHAT_TEMPLATE
    assert [row["format"] for row in facts["formats"]] == ["q8_0", "f32"]


def test_windows_are_shown(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    facts = show(capsys, write_checkpoint(tmp_path, "gemma3", with_tokenizer=False))
    assert [(row["num_layers"], row["window_tokens"]) for row in facts["kv_groups"]] == [(1, None), (2, 24)]
    assert facts["tokenizer"] is None


def test_an_unknown_architecture_is_described_as_far_as_it_goes(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = write_checkpoint(tmp_path, "llama")
    (folder / "config.json").write_text(json.dumps({**CONFIGS["llama"], "architectures": ["NovelForCausalLM"]}))
    facts = show(capsys, folder)
    assert not facts["is_supported"] and facts["architecture"] == "NovelForCausalLM"
    assert "'NovelForCausalLM' is not supported" in facts["problems"][0]
    assert facts["num_tensors"] == 30 and facts["tokenizer"]["num_tokens"] == 262


def test_refused_files_say_why(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = gguf(write_checkpoint(tmp_path, "llama"), "f16")
    blob = path.read_bytes()
    name = b"blk.0.ffn_up.weight"
    # After the name: two dimensions and their number, then the type.
    place = blob.index(name) + len(name) + 4 + 16
    cases = {
        "Q5_K": blob[:place] + b"\x0d" + blob[place + 1 :],
        "tokenizer 'bert'": blob.replace(b"gpt2", b"bert", 1),
        "truncated": blob[: len(blob) // 2],
        "truncated: ": blob[:2000],
        "instead of b'GGUF'": b"nothing at all",
    }
    for words, content in cases.items():
        path.write_bytes(content)
        facts = show(capsys, path)
        assert not facts["is_supported"] and words in facts["problems"][0]
    path.write_bytes(cases["Q5_K"])
    (row,) = (each for each in show(capsys, path)["formats"] if each["format"] == "q5_k")
    assert (row["num_parameters"], row["num_bytes"]) == (64 * 96, None)


def test_what_is_not_there_is_an_error(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["show", str(tmp_path / "nothing.gguf")]) == 1
    assert "there is no folder or file" in capsys.readouterr().err


def test_torch_is_not_loaded() -> None:
    code = (
        "import sys\nfrom ziggurat.cli.main import main\n"
        "assert main(['show']) == 0\nassert 'torch' not in sys.modules and 'gguf' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("embedded can be served")
