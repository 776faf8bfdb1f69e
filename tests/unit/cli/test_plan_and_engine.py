# SPDX-License-Identifier: Apache-2.0
"""What ``plan`` prints is what the engine takes: same flags, same rows in the ledger."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ziggurat.cli.main import main
from ziggurat.cli.memory_table import memory_table
from ziggurat.engine.config import EngineConfig
from ziggurat.engine.engine import Engine
from ziggurat.units import format_bytes

CONFIG: dict[str, Any] = {
    "architectures": ["MistralForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 320,
    "max_position_embeddings": 512,
    "sliding_window": 64,
    "layer_types": ["full_attention", "sliding_attention"],
    "torch_dtype": "bfloat16",
}
ROWS = {
    "weights": "weight_bytes",
    "workspace": "workspace_bytes",
    "tables": "table_bytes",
    "sampler": "sampler_bytes",
    "overhead": "overhead_bytes",
    "metadata": "kv_metadata_bytes",
    "kv": "kv_pool_bytes",
}


@pytest.mark.parametrize(
    "settings",
    [
        {"memory": "48MiB"},
        {"memory": "48MiB", "max_model_len": 128, "max_num_seqs": 3, "max_num_batched_tokens": 20, "block_size": 8},
    ],
)
def test_the_ledger_has_the_rows_of_the_plan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], settings: dict[str, Any]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    flags = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    assert main(["plan", str(tmp_path), "--load-format", "dummy", "--format", "json", *flags]) == 0
    planned = json.loads(capsys.readouterr().out)
    with Engine.load(EngineConfig(model=str(tmp_path), load_format="dummy", threads=1, **settings)) as engine:
        report = engine.memory()
        assert engine.model.max_model_len == planned["max_model_len_tokens"]
    ledger = {row["kind"]: row["num_bytes"] for row in report["ledger"] if row["depth"] == 0}
    assert {kind: ledger[kind] for kind in ROWS} == {kind: planned[key] for kind, key in ROWS.items()}
    assert ledger["reserve"] == planned["reserve_bytes"] + planned["unused_bytes"]
    table = memory_table(report).splitlines()
    assert any(line.split()[:3] == ["budget", *format_bytes(planned["memory_bytes"]).split()] for line in table)
