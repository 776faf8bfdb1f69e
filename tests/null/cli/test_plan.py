# SPDX-License-Identifier: Apache-2.0
"""``plan``: its JSON keys are a contract, its parts add up, and what does not fit says what would."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ziggurat.cli.main import main

ROOT = Path(__file__).parents[3]
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1024,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}
ABOUT = [
    "model",
    "architecture",
    "num_parameters",
    "weight_format",
    "stored_format",
    "kv_format",
    "memory_bytes",
    "fits",
]
SIZES = [
    *(
        "weight_bytes",
        "workspace_bytes",
        "table_bytes",
        "sampler_bytes",
        "overhead_bytes",
        "kv_pool_bytes",
    ),
    *("kv_metadata_bytes", "planned_bytes", "reserve_bytes", "unused_bytes", "kv_bytes_per_token", "kv_groups"),
    *("block_size_tokens", "max_model_len_tokens", "model_limit_tokens", "is_context_lowered", "max_num_seqs"),
    *("max_num_batched_tokens", "longest_context_tokens", "largest_batch_sequences"),
    *("num_layers", "num_streamed_layers", "streamed_bytes_per_step"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    return tmp_path


def plan(capsys: pytest.CaptureFixture[str], folder: Path, *argv: str, code: int = 0) -> dict[str, Any]:
    assert main(["plan", str(folder), "--load-format", "dummy", "--format", "json", *argv]) == code
    data: dict[str, Any] = json.loads(capsys.readouterr().out)
    return data


def test_the_keys_are_frozen(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    assert list(plan(capsys, folder, "--memory", "64MiB")) == [*ABOUT, *SIZES]


def test_every_key_is_documented() -> None:
    page = (ROOT / "docs" / "plan.md").read_text(encoding="utf-8")
    missing = [key for key in [*ABOUT, *SIZES, "needed_bytes", "message"] if f"`{key}`" not in page]
    assert missing == ["fits"], "fits is shown with its value"
    assert '`"fits": false`' in page


def test_the_parts_add_up_to_the_budget(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    data = plan(capsys, folder, "--memory", "64MiB")
    assert sum(data[key] for key in SIZES[: SIZES.index("planned_bytes")]) == data["planned_bytes"]
    assert data["planned_bytes"] + data["reserve_bytes"] + data["unused_bytes"] == data["memory_bytes"] == 64 << 20
    assert data["reserve_bytes"] == pytest.approx(0.03 * (64 << 20), abs=1)
    assert data["unused_bytes"] >= 0


def test_numbers_that_can_be_counted_by_hand(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    data = plan(capsys, folder, "--memory", "64MiB", "--max-model-len", "512", "--block-size", "32")
    # 4 layers, keys and values, 2 heads of 64 values of 2 bytes.
    assert data["kv_bytes_per_token"] == 4 * 2 * 2 * 64 * 2
    (group,) = data["kv_groups"]
    assert group["num_layers"] == 4
    assert group["window_tokens"] is None
    assert data["kv_pool_bytes"] == group["num_blocks"] * 32 * data["kv_bytes_per_token"]
    assert data["largest_batch_sequences"] == group["num_blocks"] // 16
    # Embedding (tied), 4 layers of q, k, v, o, gate, up, down and two norms, and the last norm.
    layer = 256 * 256 * 2 + 2 * 128 * 256 + 3 * 512 * 256 + 2 * 256
    assert data["num_parameters"] == 1024 * 256 + 4 * layer + 256
    assert data["max_model_len_tokens"] == 512
    assert data["model_limit_tokens"] == 4096


def test_a_small_budget_lowers_the_context_and_says_so(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    data = plan(capsys, folder, "--memory", "36MiB")
    assert data["is_context_lowered"]
    assert data["max_model_len_tokens"] == data["longest_context_tokens"] < 4096
    assert main(["plan", str(folder), "--load-format", "dummy", "--memory", "36MiB"]) == 0
    assert f"context            {data['max_model_len_tokens']:,} tokens (lowered, the model has 4,096)" in (
        capsys.readouterr().out
    )


def test_the_change_that_is_named_works(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    refused = plan(capsys, folder, "--memory", "1MiB", code=1)
    assert list(refused) == [*ABOUT, "needed_bytes", "message"]
    assert not refused["fits"]
    plan(capsys, folder, "--memory", str(refused["needed_bytes"] - 1), code=1)
    assert plan(capsys, folder, "--memory", str(refused["needed_bytes"]))["fits"]


def test_a_fixed_context_is_never_lowered(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    refused = plan(capsys, folder, "--memory", "36MiB", "--max-model-len", "4096", code=1)
    shorter = refused["message"].partition("lower --max-model-len to ")[2].partition(",")[0]
    data = plan(capsys, folder, "--memory", "36MiB", "--max-model-len", shorter)
    assert data["max_model_len_tokens"] == int(shorter)
    assert plan(capsys, folder, "--memory", str(refused["needed_bytes"]), "--max-model-len", "4096")["fits"]


def test_what_does_not_fit_is_one_line(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    assert main(["plan", str(folder), "--load-format", "dummy", "--memory", "1MiB"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert "The smallest change: raise --memory to" in captured.err


def test_the_table(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    argv = ["plan", "--model", str(folder), "--load-format", "dummy", "--max-num-seqs", "1"]
    assert main([*argv, "--memory", "64MiB"]) == 0
    text = capsys.readouterr().out
    assert "budget      64.0 MiB  what the process may add over its baseline (--memory)" in text
    assert "a step of up to 256 tokens and 1 sequence\n" in text
    assert "blocks for 4 layers (full attention); 16 tokens per block, bf16" in text
    assert main(argv) == 0
    assert "a baseline of 320 MiB; --memory sets it" in capsys.readouterr().out


def test_a_window_has_a_group_of_its_own(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    kinds = ["full_attention", "sliding_attention"] * 2
    raw = {**CONFIG, "architectures": ["MistralForCausalLM"], "sliding_window": 128, "layer_types": kinds}
    (tmp_path / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    full, window = plan(capsys, tmp_path, "--memory", "64MiB")["kv_groups"]
    assert (full["window_tokens"], window["window_tokens"]) == (None, 128)
    assert window["num_blocks"] < full["num_blocks"]


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        (["x", "--model", "y"], 2, "the model is named twice: 'x' and --model 'y'"),
        (["x/y/z"], 1, "there is no folder or file 'x/y/z'"),
        (["--memory", "lots"], 1, "'lots' is not a size"),
        (["--max-num-seqs", "8", "--max-num-batched-tokens", "4"], 1, "max_num_batched_tokens 4 is below"),
        (["--threads", "2"], 2, "unknown flag '--threads'"),
    ],
)
def test_mistakes(capsys: pytest.CaptureFixture[str], argv: list[str], code: int, says: str) -> None:
    assert main(["plan", *argv]) == code
    assert says in capsys.readouterr().err
