# SPDX-License-Identifier: Apache-2.0
"""From measured files to errors, on files made here in the columns of the public profiles."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from ziggurat.cli.hardware.fit import run as fit
from ziggurat.errors import ConfigError
from ziggurat.hardware.families import GEMM, Calibrated, Columns
from ziggurat.hardware.report import errors
from ziggurat.hardware.samples import gemm_sample, read_samples

OPS = ("attn_pre_proj", "attn_post_proj", "mlp_up_proj", "mlp_down_proj", "input_layernorm", "add")
KEYS = {
    *("file", "device", "model", "op_class", "cost_model", "device_seen", "n", "mape", "median_error"),
    *("p90_error", "p95_error", "bias", "interval80_coverage", "interval80_halfwidth"),
}


def write_gemms(path: Path, device: str, hidden: int, seed: int) -> Path:
    """A file like Vidur's whose GEMMs follow the calibrated formula with 3 % of noise."""
    rng = np.random.default_rng(seed)
    model = Calibrated(family=GEMM, values=(0.7, 0.85, 6e-6, 0.6, 0.25))
    facts = {"n_head": 32, "n_kv_head": 32, "n_embd": hidden, "n_expanded_embd": 4 * hidden, "use_gated_mlp": True}
    with path.open("w", newline="") as file:
        names = [f"time_stats.{op}.median" for op in OPS]
        writer = csv.DictWriter(file, [*names, *facts, "num_tokens", "num_tensor_parallel_workers"])
        writer.writeheader()
        for tokens in (1, 8, 32, 96, 128, 256, 512, 1024, 2048, 4096):
            for ranks in (1, 2, 4):
                shapes = {
                    "attn_pre_proj": (3 * hidden / ranks, hidden),
                    "attn_post_proj": (hidden, hidden / ranks),
                    "mlp_up_proj": (8 * hidden / ranks, hidden),
                    "mlp_down_proj": (hidden, 4 * hidden / ranks),
                }
                row = {**facts, "num_tokens": tokens, "num_tensor_parallel_workers": ranks}
                for op, (n, k) in shapes.items():
                    columns = Columns.of([gemm_sample(op, tokens, n, k, 1.0, device=device)])
                    row[f"time_stats.{op}.median"] = 1e3 * model.predict(columns)[0] * rng.normal(1, 0.03)
                row["time_stats.input_layernorm.median"] = 0.003 + tokens * hidden * 4 / 1e12 * 1e3
                row["time_stats.add.median"] = 0.002 + tokens * hidden * 6 / 1.8e12 * 1e3
                writer.writerow(row)
    return path


def rows_of(capsys: pytest.CaptureFixture[str], *words: object) -> list[dict[str, object]]:
    assert fit([*map(str, words), "--format", "json"]) == 0
    found: list[dict[str, object]] = json.loads(capsys.readouterr().out)["test"]
    return found


def test_a_model_that_was_not_fitted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = [write_gemms(tmp_path / f"mlp_a100_org_m{h}.csv", "a100", h, h) for h in (2048, 4096)]
    test = write_gemms(tmp_path / "mlp_a100_org_other.csv", "a100", 3072, 9)
    rows = rows_of(capsys, "--kind", "gemm", "--train", *train, "--test", test)
    assert all(row.keys() == KEYS for row in rows)
    found = {(row["op_class"], row["cost_model"]): row for row in rows}
    calibrated = found["gemm", "calibrated"]
    assert calibrated["n"] == 120 and calibrated["device_seen"] is True and calibrated["model"] == "other"
    assert calibrated["mape"] < 0.035 < found["gemm", "ideal"]["mape"]  # type: ignore[operator]
    assert 0.65 < calibrated["interval80_coverage"] < 0.95  # type: ignore[operator]
    assert 0.02 < calibrated["interval80_halfwidth"] < 0.08  # type: ignore[operator]
    assert found["layernorm", "calibrated"]["n"] < 30  # type: ignore[operator]  rows below 10 us are not judged


def test_a_device_that_was_not_fitted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = [write_gemms(tmp_path / f"mlp_{d}_org_m.csv", d, 4096, 1) for d in ("a100", "a40")]
    test = write_gemms(tmp_path / "mlp_h100_org_m.csv", "h100", 4096, 2)
    rows = rows_of(capsys, "--train", *train, "--test", test, "--samples-per-device", "64", "--seed", "3")
    found = {(row["op_class"], row["cost_model"]): row for row in rows}
    assert found["gemm", "calibrated"]["device_seen"] is False
    assert found["gemm", "calibrated"]["mape"] < 0.05  # type: ignore[operator]


def test_errors_against_a_hand_made_case() -> None:
    found = errors(np.array([1.1, 0.8]), np.array([1.0, 1.0]), np.log([0.7, 1.3]))
    assert found["mape"] == pytest.approx(0.15) and found["bias"] == pytest.approx(-0.05)
    assert found["interval80_coverage"] == 0.5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "no known profile"),
        ("prompt_time,token_time,batch_size\n", "kind iteration, not of kind gemm"),
        ("num_tokens,n_embd,time_stats.mlp_up_proj.median\n", "no row that can be used"),
        ("num_tokens,n_embd,time_stats.mlp_up_proj.median\nx,1,1\n", "line 2: num_tokens must be a number"),
        ("num_tokens,n_embd,time_stats.mlp_up_proj.median\n-4,1,1\n", "line 2: num_tokens must be a number"),
    ],
)
def test_a_file_that_is_something_else(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mlp_a100_x.csv"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_samples(path, "gemm")


def test_a_name_without_a_device(tmp_path: Path) -> None:
    path = write_gemms(tmp_path / "mlp_a100_m.csv", "a100", 2048, 0).rename(tmp_path / "mlp_b9_m.csv")
    with pytest.raises(ConfigError, match="names no device"):
        read_samples(path, "gemm")
