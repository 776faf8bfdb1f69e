# SPDX-License-Identifier: Apache-2.0
"""``ziggurat plan MODEL --device``: the answer as data and as text, names of the registry and folders, exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ziggurat.cli.main import main
from ziggurat.hardware.models import find_model


def plan(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, Any]:
    code = main(["plan", *words, "--format", "json"])
    return code, json.loads(capsys.readouterr().out)


def test_a_name_of_the_registry_needs_no_files(capsys: pytest.CaptureFixture[str]) -> None:
    code, data = plan(capsys, "llama2-70b", "--device", "a100", "--device", "h100", "--max-tpot-ms", "50")
    assert code == 0 and data["kind"] == "derived"
    assert [(row["device"], row["tensor_parallel"]) for row in data["layouts"]] == [
        (device, ranks) for device in ("a100-80g-sxm", "h100-sxm") for ranks in (1, 2, 4, 8)
    ]
    assert [row["fits"] for row in data["layouts"]][:2] == [False, True]
    assert data["best"]["tensor_parallel"] >= 2 and data["layer"]


def test_a_folder_is_planned_for_by_its_config(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    shape = find_model("llama2-7b")
    raw = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "intermediate_size": shape.intermediate,
        "vocab_size": shape.vocabulary,
    }
    (tmp_path / "config.json").write_text(json.dumps(raw))
    _, named = plan(capsys, "llama2-7b", "--device", "a40")
    _, folder = plan(capsys, str(tmp_path), "--device", "a40")
    assert folder["layouts"] == named["layouts"]
    del raw["intermediate_size"]
    (tmp_path / "config.json").write_text(json.dumps(raw))
    assert main(["plan", str(tmp_path), "--device", "a40"]) == 1
    assert "does not say 'intermediate_size'" in capsys.readouterr().err


def test_people_read_a_table_and_what_is_missed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "llama2-13b", "--device", "a100", "--price-per-hour", "a100=1.8"]) == 0
    text = capsys.readouterr().out
    assert "Best: 4 x a100-80g-sxm" in text and "bound by" in text and "no scheduler ran" in text
    assert main(["plan", "llama2-13b", "--device", "a100", "--max-tpot-ms", "0.5"]) == 1
    assert "ms even alone, 0.5 allowed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["llama2-7x", "--device", "a100"], "unknown model shape 'llama2-7x', did you mean"),
        (["llama2-7b", "--device", "a10"], "unknown device 'a10'"),
        (["llama2-7b", "--device", "a100", "--tensor-parallel", "3"], "does not divide the 32 heads"),
        (["llama2-7b", "--device", "a100", "--tensor-parallel", "two"], "must be a number of devices, got two"),
        (["llama2-7b", "--device", "a100", "--price-per-hour", "a100"], "must look like h100=2.5"),
        (["llama2-7b", "--device", "a100", "--context", "0"], "context must be above 0"),
    ],
)
def test_nonsense_is_one_line(capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    assert main(["plan", *words]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_it_loads_no_torch() -> None:
    call = "main(['plan', 'llama2-7b', '--device', 'a100'])"
    code = f"import sys; from ziggurat.cli.main import main; {call}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
