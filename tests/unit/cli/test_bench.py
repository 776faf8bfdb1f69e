# SPDX-License-Identifier: Apache-2.0
"""Every kind of ``ziggurat bench`` on a tiny model in this process."""

from __future__ import annotations

import json

import pytest

from tests.checkpoints import write_checkpoint
from ziggurat.cli.main import main


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = write_checkpoint(tmp_path_factory.mktemp("llama"), "llama")
    return [str(folder), "--memory", "48MiB", "--threads", "1"]


SMALL = ["--num-prompts", "6", "--random-input-len", "20", "--random-output-len", "4"]


def result_of(capsys: pytest.CaptureFixture[str], *argv: str) -> dict:  # type: ignore[type-arg]
    assert main(["bench", *argv, "--format", "json"]) == 0
    return json.loads(capsys.readouterr().out)  # type: ignore[no-any-return]


def test_latency(model: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    flags = [
        "--input-len",
        "8",
        "--output-len",
        "3",
        "--batch-size",
        "2",
        "--num-iters",
        "3",
        "--num-iters-warmup",
        "1",
    ]
    result = result_of(capsys, "latency", *model, *flags)
    assert len(result["latencies"]) == 3 and min(result["latencies"]) > 0
    assert set(result["percentiles"]) == {"10", "25", "50", "75", "90", "99"}
    assert result["command"].startswith("ziggurat bench latency")


def test_throughput(model: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    result = result_of(capsys, "throughput", *model, *SMALL, "--planner", "splitfuse")
    assert (result["num_requests"], result["num_failed"], result["total_num_tokens"]) == (6, 0, 6 * 24)
    assert main(["bench", "throughput", *model, *SMALL]) == 0
    assert capsys.readouterr().out.startswith("Throughput: ")


def test_serve(model: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--request-rate", "inf", "--max-concurrency", "2", "--goodput", "ttft:60000", "--save-detailed"]
    result = result_of(capsys, "serve", *model, *SMALL, *flags)
    assert (result["completed"], result["failed"], result["max_concurrent_requests"]) == (6, 0, 2)
    assert result["total_output_tokens"] == 24 and result["total_cached_tokens"] == 0
    assert result["request_goodput"] == result["request_throughput"] > 0
    assert len(result["ttfts"]) == 6 and set(result["drift"]) == {"mean_ms", "p99_ms", "max_ms"}


def test_clients_with_turns_reuse_what_was_said(model: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--num-clients", "2", "--num-turns", "3", "--block-size", "4"]
    result = result_of(capsys, "serve", *model, *SMALL, *flags)
    assert (result["completed"], result["max_concurrent_requests"]) == (6, 2)
    # Turns of 20 tokens and answers of 4: 20, 44, 68. Blocks of 4; an answer's last token is never fed back.
    assert (result["total_input_tokens"], result["total_cached_tokens"]) == (2 * 132, 2 * (20 + 44))


def test_sweep(model: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    loose = ["--target", "mean_e2el_ms=100000", "--start-rate", "1000"]
    result = result_of(capsys, "sweep", *model, *SMALL, *loose)
    assert result["is_bounded"] is False and result["capacity"] > 1000
    assert main(["bench", "sweep", *model, *SMALL, "--target", "p99_ttft_ms=0.0001", "--start-rate", "50000"]) == 1
    assert "no rate meets the target: even 50 requests/s gives p99_ttft_ms" in capsys.readouterr().err
