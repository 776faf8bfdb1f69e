# SPDX-License-Identifier: Apache-2.0
"""``ziggurat bench`` without a model: kinds, options, what is wrong with them, and the screen."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from ziggurat.cli.bench.report import WIDTH, banner, details, serving_result
from ziggurat.cli.bench.requests import WorkloadOptions
from ziggurat.cli.bench.serve import ServeOptions, source_of
from ziggurat.cli.bench.sweep import SweepOptions
from ziggurat.cli.main import main
from ziggurat.errors import ConfigError
from ziggurat.workload.metrics import summarize
from ziggurat.workload.records import RequestRecord
from ziggurat.workload.traces.reading import read_trace


def record() -> RequestRecord:
    return RequestRecord(
        id="a",
        arrival_s=0.0,
        num_prompt_tokens=10,
        token_times_s=((1.0, 1.5, 2.5),),
        finish_s=2.5,
        reason="length",
    )


def test_the_json_has_vllms_keys() -> None:
    summary = summarize([record()], goodput={"ttft": 2000})
    result = serving_result(summary, backend="ziggurat", model="m", rate=math.inf, burstiness=1.0, max_concurrency=4)
    expected = (
        "backend label model_id tokenizer_id num_prompts request_rate burstiness max_concurrency duration completed failed "
        "total_input_tokens total_output_tokens request_throughput request_goodput output_throughput total_token_throughput "
        "max_output_tokens_per_s max_concurrent_requests"
    )
    spreads = {
        f"{word}_{name}_ms" for word in ("mean", "median", "std", "p99") for name in ("ttft", "tpot", "itl", "e2el")
    }
    assert {*expected.split(), *spreads} <= set(result)
    assert result["request_rate"] == "inf"
    json.dumps(result, allow_nan=False)


def test_the_screen_is_fifty_columns() -> None:
    result = serving_result(
        summarize([record()], percentiles=[50, 99]),
        backend="ziggurat",
        model="m",
        rate=2.0,
        burstiness=1.0,
        max_concurrency=None,
    )
    lines = banner(
        {**result, "drift": {"mean_ms": 0.5, "p99_ms": 1.0, "max_ms": 2.0}}, metrics=["ttft"], percentiles=[99]
    )
    rows = lines.splitlines()
    assert rows[0] == f"{' Serving Benchmark Result ':=^50}" and rows[-1] == "=" * 50
    assert max(len(row) for row in rows) <= WIDTH
    assert "Successful requests:                    1" in rows
    assert "Mean TTFT (ms):                         1000.00" in rows
    assert "Max (ms):                               2.00" in rows


def test_details_are_one_entry_per_request() -> None:
    assert {key: len(value) for key, value in details([record()]).items()} == dict.fromkeys(
        ("input_lens", "output_lens", "ttfts", "itls", "start_times", "errors"), 1
    )


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"num_clients": 2, "request_rate": 3.0}, "takes no --request-rate"),
        ({"num_turns": 2}, "--num-turns 2 needs --num-clients"),
        ({"request_rate": 0}, "request_rate must be above 0"),
        ({"goodput": "tttf:200"}, "unknown goodput metric 'tttf', did you mean 'ttft'"),
        ({"goodput": "ttft:soon"}, "'soon' is not a number"),
        ({"goodput": "ttft:0"}, "a limit must be above 0 ms, nobody could meet it"),
        ({"percentile_metrics": "tpott"}, "unknown metric 'tpott', did you mean 'tpot'"),
        ({"metric_percentiles": "101"}, "'101' is not a number from 0 to 100"),
    ],
)
def test_bad_serve_options(settings, says: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError, match=says):
        ServeOptions(**settings)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"num_prompts": 0}, "num_prompts must be at least 1, got 0"),
        ({"dataset_name": "timed_trace"}, "go together"),
        ({"dataset_path": Path("x")}, "go together"),
        ({"random_range_ratio": 1.0}, "below 1, got 1.0"),
        ({"scale": 0}, "scale must be above 0"),
    ],
)
def test_bad_workloads(settings, says: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError, match=says):
        WorkloadOptions(**settings)


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("p99_itl_ms", "must look like"),
        ("p99_itll_ms=3", "did you mean 'p99_itl_ms'"),
        ("p99_itl_ms=0", "nobody could"),
    ],
)
def test_bad_targets(target: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        SweepOptions(target=(target,))


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (
            ['{"timestamp": -1, "input_length": 3, "output_length": 2}'],
            "row 1: timestamp must be a number of at least 0 .*, got -1",
        ),
        (
            [f'{{"timestamp": {t}, "input_length": 3, "output_length": 2}}' for t in (0, 2000, 1000)],
            r"not sorted: row 3 .* comes at 1.0 s, the row before it at 2.0 s",
        ),
        (['{"timestamp": 0}'], "missing column 'input_length', 'output_length' of the mooncake format"),
        (["what"], "missing column .* Columns found: 'what'"),
        ([], "has no rows"),
    ],
)
def test_a_trace_that_is_not_one(tmp_path: Path, rows: list[str], says: str) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text("\n".join(rows), encoding="utf-8")
    with pytest.raises(ConfigError, match=says):
        read_trace(path)
    with pytest.raises(ConfigError, match="cannot read the trace"):
        read_trace(tmp_path / "no.jsonl")


def test_a_trace_keeps_its_times_unless_a_rate_is_given(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text("\n".join(f'{{"timestamp": {t}, "input_length": 3, "output_length": 2}}' for t in (0, 4000)))
    workload = WorkloadOptions(dataset_name="timed_trace", dataset_path=path)
    arrivals = workload.arrivals(None)
    kept, faster = (source_of(arrivals, workload, ServeOptions(request_rate=rate)) for rate in (math.inf, 2.0))
    assert [source.pop().t_s for source in (kept, kept, faster, faster)] == [0.0, 4.0, 0.0, 2.0]


def test_command_lines_that_are_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "latnecy"]) == 2
    assert "unknown kind 'latnecy', did you mean 'latency'" in capsys.readouterr().err
    assert main(["bench"]) == 2
    assert main(["bench", "serve", "--base-url", "http://127.0.0.1:9", "--planner", "orca"]) == 2
    assert "--planner is for an engine in this process, not for --base-url" in capsys.readouterr().err
    assert main(["bench", "serve", "--planner", "orka"]) == 2
    assert "'orka' is none of" in capsys.readouterr().err
    assert main(["bench", "sweep", "--dataset-name", "timed_trace", "--dataset-path", "x"]) == 1
    assert "a trace has its own" in capsys.readouterr().err
