# SPDX-License-Identifier: Apache-2.0
"""Scenarios: what a file may say, and what each mistake is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ziggurat.cli.main import main
from ziggurat.errors import ConfigError, UnsupportedFeature
from ziggurat.simulation.scenario import read_scenario

GOOD = 'model = "llama2-7b"\ndevice = "a100"\nseed = 3\n[arrivals]\nrate = 5.0\nnum_requests = 20\n'


def write(folder: Path, text: str) -> Path:
    path = folder / "scenario.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('device = "a100"\n[arrivals]\n', "the key 'model' is required"),
        (GOOD.replace("llama2-7b", "llama2-8b"), "unknown model shape 'llama2-8b', did you mean"),
        (GOOD.replace("a100", "a101"), "unknown device 'a101', did you mean 'a100'"),
        (GOOD.replace("seed", "sed"), "unknown key 'sed', did you mean 'seed'"),
        (GOOD.replace("rate = 5.0", "rte = 5.0"), "unknown key arrivals.'rte', did you mean 'rate'"),
        (GOOD.replace("5.0", "0.0"), "arrivals.rate must be above 0"),
        (GOOD.replace("5.0", '"fast"'), "arrivals.rate must be a number, got 'fast'"),
        (GOOD.replace("seed = 3", 'planner = "sarati"'), "unknown batch planner 'sarati', did you mean 'sarathi'"),
        (GOOD.replace("seed = 3", 'dispatcher = "least"'), "unknown dispatcher 'least'"),
        (GOOD.replace("seed = 3", "instances = 0"), "instances must be at least 1, got 0"),
        (GOOD + "[layout]\ntensor_parallel = 3\n", "tensor_parallel 3 does not divide the 32 heads"),
        (GOOD + "[slo]\nttft_ms = -1\n", "slo.ttft_ms must be above 0 ms"),
        (GOOD + "[slo]\nttft_ms = 0\n", "no request can meet it"),
        ('model = "llama2-7b"\ndevice = "a100"\n', r"either \[arrivals\] or a trace"),
        ("model = ", "not valid TOML"),
        (GOOD.replace("seed = 3", "layout = 4"), "layout must be a table"),
    ],
)
def test_mistakes(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_scenario(write(tmp_path, text))


def test_roles_that_are_not_built(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedFeature, match="only 'mixed' is built"):
        read_scenario(write(tmp_path, GOOD.replace("seed = 3", 'roles = ["prefill", "decode"]')))


def test_traces_are_relative_to_the_scenario_and_must_be_in_order(tmp_path: Path) -> None:
    trace = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:00:01.0,10,5\n2023-11-16 18:00:03.5,20,7\n"
    (tmp_path / "azure.csv").write_text(trace)
    text = 'model = "llama2-7b"\ndevice = "a100"\ntrace = "azure.csv"\n'
    arrivals = read_scenario(write(tmp_path, text)).requests()
    assert [(a.prompt_len, a.max_new) for a in arrivals] == [(10, 5), (20, 7)]
    assert arrivals[1].t_s - arrivals[0].t_s == pytest.approx(2.5)
    (tmp_path / "azure.csv").write_text(trace.replace("18:00:03.5", "17:59:00"))
    with pytest.raises(ConfigError, match="row 2"):
        read_scenario(write(tmp_path, text)).requests()


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, GOOD)
    extra = [f"--{name}={tmp_path / name}" for name in ("records", "timeline", "decisions")]
    assert main(["simulate", str(path), "--format", "json", *extra]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["kind"] == "simulated" and result["completed"] == 20 and result["mean_ttft_ms"] > 0
    assert len((tmp_path / "records").read_text().splitlines()) == 20
    timeline = json.loads((tmp_path / "timeline").read_text())
    assert len(timeline) == result["num_steps"] == len((tmp_path / "decisions").read_text().splitlines())
    assert main(["simulate", str(path)]) == 0
    assert "simulated: llama2-7b on 1 x 1 a100" in capsys.readouterr().out
    assert main(["simulate", str(tmp_path / "none.toml")]) == 1
