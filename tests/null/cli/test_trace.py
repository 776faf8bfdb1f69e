# SPDX-License-Identifier: Apache-2.0
"""``ziggurat trace``: keys of the JSON are frozen, the shipped sample works in every kind, mistakes are one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.null.workload.traces import samples
from ziggurat.cli.main import main
from ziggurat.cli.trace.hit_curves import draw
from ziggurat.errors import ConfigError
from ziggurat.memory.eviction import EVICTION_POLICIES, ORACLES
from ziggurat.workload.traces.reading import read_trace

ROOT = Path(__file__).parents[3]
SAMPLE = ROOT / "docs" / "samples" / "burstgpt.csv"
PAGE = ROOT / "docs" / "traces.md"

SPREAD = {"count", "total", "mean", "min", "p50", "p80", "p90", "p95", "p99", "max"}
READ_KEYS = {
    *("file", "trace_format", "has_times", "rows_read", "rows_dropped", "rows_kept", "num_requests", "num_failed"),
    "bad_rows",
}
STATS_KEYS = {
    *(
        "failure_ratio",
        "start_s",
        "end_s",
        "duration_s",
        "request_rate_per_s",
        "gap_cv",
        "windows",
        "prompt_tokens",
        "output_tokens",
    ),
    *("elapsed_s", "sessions", "services", "prefix"),
}
SERVICE_KEYS = {"model", "log_type", "num_requests", "prompt_tokens", "output_tokens"}
WINDOW_KEYS = {"window_s", "num_windows", "num_empty", "num_with_cv", "rate_per_s", "gap_cv"}
SESSION_KEYS = {"num_sessions", "num_requests_outside", "requests_per_session", "gap_s"}
PREFIX_KEYS = {
    *("source", "num_requests_unknown", "block_size_tokens", "num_blocks", "num_distinct_blocks"),
    *("num_repeated_blocks", "repeated_ratio"),
}
FIT_KEYS = {
    *("window_s", "resolution_s", "num_windows", "num_by_method", "num_tested", "num_rejected", "level", "series"),
}
SERIES_KEYS = {
    *("start_s", "width_s", "num_requests", "rate_per_s", "shape", "scale_s", "cv", "method", "ks_distance", "p_value"),
}
CACHE_KEYS = {"block_size_tokens", "kv_bytes_per_token", "num_requests_unknown", "notes", "caches"}
CACHE_ROW_KEYS = {
    *("policy", "capacity_blocks", "capacity_bytes", "query_tokens", "hit_tokens", "token_hit_ratio", "query_blocks"),
    *("hit_blocks", "block_hit_ratio", "num_hit_requests", "evicted_blocks", "cached_blocks", "num_oversized_requests"),
}


def result(capsys: pytest.CaptureFixture[str], *argv: str | Path) -> Any:
    assert main(["trace", *map(str, argv), "--format", "json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("name", samples.ALL)
def test_the_keys_are_frozen_for_every_format(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    _, file_name, text = samples.ALL[name]
    path = samples.write(tmp_path, text, file_name)
    found = result(capsys, "stats", path, "--fit", "--num-resamples", "19")
    assert set(found) == READ_KEYS | STATS_KEYS | {"arrival_fit"}
    assert set(found["windows"]) == WINDOW_KEYS and set(found["sessions"]) == SESSION_KEYS
    assert set(found["prefix"]) == PREFIX_KEYS and set(found["arrival_fit"]) == FIT_KEYS
    assert set(found["prompt_tokens"]) == set(found["windows"]["gap_cv"]) == set(found["elapsed_s"]) == SPREAD
    assert all(set(row) == SERVICE_KEYS for row in found["services"])
    assert all(set(row) == SERIES_KEYS for row in found["arrival_fit"]["series"])
    cache = result(capsys, "cache", path, "--capacity-blocks", "3", "--block-size", "16")
    assert set(cache) == READ_KEYS | CACHE_KEYS
    num_policies = len([*EVICTION_POLICIES.names(), *ORACLES.names()])
    assert [row["capacity_blocks"] for row in cache["caches"]] == [3] * num_policies + [None] * num_policies
    assert all(set(row) == CACHE_ROW_KEYS for row in cache["caches"])


def test_the_page_has_every_key() -> None:
    page = PAGE.read_text(encoding="utf-8")
    keys = READ_KEYS | STATS_KEYS | WINDOW_KEYS | SESSION_KEYS | PREFIX_KEYS | FIT_KEYS | SERIES_KEYS | CACHE_KEYS
    assert [key for key in sorted(keys | CACHE_ROW_KEYS | SPREAD) if f"`{key}`" not in page] == []


def test_the_sample_goes_through_every_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stats = result(capsys, "stats", SAMPLE)
    assert stats["rows_read"] == stats["rows_kept"] + sum(stats["rows_dropped"].values()) == 131
    assert stats["num_failed"] == 3 and stats["failure_ratio"] == 3 / 131 and len(stats["services"]) == 2
    target = tmp_path / "out.jsonl"
    converted = result(capsys, "convert", SAMPLE, "--to", "mooncake", "--output", target)
    assert converted["rows_written"] == 128 == len(read_trace(target))
    assert set(converted["fields_lost"]) == {"model", "log_type", "elapsed_s"}
    part = tmp_path / "part.csv"
    sampled = result(capsys, "sample", SAMPLE, "--model", "GPT-4", "--end-s", "900", "--thin", "0.5", "--output", part)
    assert (sampled["output_format"], len(sampled["labels"])) == ("burstgpt", 1)
    found = read_trace(part)
    assert 0 < len(found) == sampled["rows_written"] < sampled["num_requests"]
    assert all(arrival.model == "GPT-4" and arrival.t_s < 900 for arrival in found)
    modelled = result(capsys, "sample", SAMPLE, "--scaling", "modelled", "--rate-scale", "3", "--output", part)
    assert modelled["rows_written"] == pytest.approx(3 * 128, rel=0.4)
    made = result(capsys, "generate", "--num-prompts", "20", "--mean-turns", "3", "--cv", "2", "--output", target)
    assert made["rows_written"] == len(read_trace(target)) > 20


def test_text_is_for_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", "stats", str(SAMPLE), "--fit", "--num-resamples", "19"]) == 0
    text = capsys.readouterr().out
    assert "131 rows read = 3 dropped (3 failed (no response tokens)) + 128 kept" in text
    assert "ChatGPT" in text and "gamma fits per window" in text and "ticks of 1 s" in text
    assert main(["trace", "cache", str(SAMPLE), "--capacity", "1MiB", "--kv-bytes-per-token", "512"]) == 0
    text = capsys.readouterr().out
    assert "no limit" in text and "nothing is known of the beginnings of 77 prompts" in text
    assert main(["trace", "stats", str(samples.write(tmp_path, samples.SHAREGPT, "a.json"))]) == 0
    assert "the file has no times" in capsys.readouterr().out
    assert main(["trace", "convert", str(SAMPLE), "--to", "vidur", "--output", str(tmp_path / "o.csv")]) == 0
    assert "the format cannot hold, and the file lacks: elapsed_s of" in capsys.readouterr().out


def test_hit_curves_are_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="needs the extra `plots`")
    picture = tmp_path / "curves.svg"
    found = result(capsys, "cache", SAMPLE, "--capacity-blocks", "50", "--capacity-blocks", "100", "--plot", picture)
    text = picture.read_text(encoding="utf-8")
    assert "<svg" in text and all(f"<!-- {row['policy']} -->" in text for row in found["caches"])
    with pytest.raises(ConfigError, match="cannot write the picture"):
        draw(found, tmp_path / "nowhere" / "curves.svg")
    argv = ["trace", "cache", str(SAMPLE), "--capacity-blocks", "50", "--plot", "curves.txt"]
    assert main(argv) == 1 and "a picture ends in .png or .svg, got 'curves.txt'" in capsys.readouterr().err
    assert main(["trace", "cache", str(SAMPLE), "--plot", str(picture)]) == 1
    assert "--plot draws hits over capacity" in capsys.readouterr().err


def test_windows_of_failures_only_are_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = ["0,,,m,9,9,18,API log", "70,,,m,9,0,9,API log", "150,,,m,9,9,18,API log"]
    path = samples.write(tmp_path, "\n".join([samples.BURSTGPT.splitlines()[0], *rows]))
    assert main(["trace", "stats", str(path), "--fit", "--window-s", "60"]) == 0
    assert "warning: 1 windows hold failed requests only" in capsys.readouterr().out


def test_a_capacity_in_bytes(capsys: pytest.CaptureFixture[str]) -> None:
    found = result(
        capsys,
        "cache",
        SAMPLE,
        "--capacity",
        "1MiB",
        "--kv-bytes-per-token",
        "512",
        "--block-size",
        "64",
        "--policy",
        "lru",
    )
    assert [(row["capacity_blocks"], row["capacity_bytes"]) for row in found["caches"]] == [(32, 1 << 20), (None, None)]


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        (["stats", "no.csv"], 1, "cannot read the trace no.csv: No such file"),
        (["stats"], 2, "FILE"),
        (["stat", "x"], 2, "unknown kind 'stat', did you mean 'stats'?"),
        (["stats", str(SAMPLE), "--from", "azur"], 2, "did you mean 'azure'"),
        (["stats", str(SAMPLE), "--from", "azure"], 1, "missing column 'TIMESTAMP'"),
        (["stats", str(SAMPLE), "--start-s", "5", "--end-s", "5"], 1, "the window [5.0, 5.0) s is empty"),
        (["stats", str(SAMPLE), "--start-s", "1e9"], 1, "131 outside the window"),
        (["stats", str(SAMPLE), "--window-s", "0"], 1, "longer than 0 s"),
        (["stats", str(SAMPLE), "--hash-block-tokens", "0"], 1, "hash_block_tokens must be at least 1"),
        (["cache", str(SAMPLE), "--capacity", "1MiB"], 1, "go together"),
        (["cache", str(SAMPLE), "--capacity", "1KiB", "--kv-bytes-per-token", "512"], 1, "less than one block"),
        (["cache", str(SAMPLE), "--capacity-blocks", "0"], 1, "at least one block, got 0"),
        (["cache", str(SAMPLE), "--policy", "lri"], 1, "did you mean 'lru'"),
        (["cache", str(SAMPLE), "--block-size", "0"], 1, "block_size must be at least 1"),
        (["convert", str(SAMPLE), "--to", "vidur"], 2, "--output FILE is missing"),
        (["convert", str(SAMPLE), "--to", "sharegpt", "--output", "/dev/null"], 1, "sharegpt files hold text"),
        (["sample", str(SAMPLE), "--thin", "0", "--output", "/dev/null"], 1, "above 0 and at most 1"),
        (["sample", str(SAMPLE), "--rate-scale", "0", "--output", "/dev/null"], 1, "rate scale must be above 0"),
        (["sample", str(SAMPLE), "--rate-scale", "1e-300", "--output", "/dev/null"], 1, "can be written; scale less"),
        (["generate", "--request-rate", "0", "--output", "/dev/null"], 1, "rate must be above 0"),
        (["generate", "--request-rate", "0", "--mean-turns", "2", "--output", "/dev/null"], 1, "must be above 0"),
        (["generate", "--cv", "0", "--output", "/dev/null"], 1, "coefficient of variation must be above 0"),
        (["generate", "--num-prompts", "0", "--output", "/dev/null"], 1, "num_prompts must be at least 1"),
        (["generate", "--length-scale", "0", "--output", "/dev/null"], 1, "length_scale must be above 0"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(capsys: pytest.CaptureFixture[str], argv: list[str], code: int, says: str) -> None:
    assert main(["trace", *argv]) == code
    error = capsys.readouterr().err
    assert says in error and len(error.splitlines()) == 1


def test_no_torch_is_loaded() -> None:
    code = (
        "import sys\nfrom ziggurat.cli.main import main\n"
        f"assert main(['trace', 'stats', {str(SAMPLE)!r}, '--fit']) == 0\n"
        f"assert main(['trace', 'cache', {str(SAMPLE)!r}]) == 0\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_tokenizer_counts_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = samples.write(tmp_path, samples.SHAREGPT, "a.json")
    estimated, counted = (
        result(capsys, "stats", path, *more)["prompt_tokens"]["total"] for more in ([], ["--tokenizer", "embedded"])
    )
    assert estimated == 24 < counted
