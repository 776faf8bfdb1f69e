# SPDX-License-Identifier: Apache-2.0
"""Metrics by vLLM's names, the memory map, and the console line."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.fake_service import KV_BYTES_PER_TOKEN, MIB, FakeService
from tests.server_client import CHAT, COMPLETIONS, HELLO, client_of, talk
from ziggurat.engine.types import FinishReason, GenerateOutput
from ziggurat.scheduling.protocol import SampledToken
from ziggurat.server.app import create_app
from ziggurat.server.memory_view import kv_bytes, memory_view
from ziggurat.server.metrics import RequestTimer, ServerMetrics
from ziggurat.server.reporter import Totals, interval
from ziggurat.server.service import ServiceStats
from ziggurat.server.state import ServerState

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]
LABELS = {"model_name": "fake-1", "engine": "0"}


def samples_of(text: str) -> Samples:
    return {
        (sample.name.removeprefix("ziggurat:"), tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, tuple(sorted(labels.items()))]


def scrape_after(*requests: tuple[str, dict[str, Any]]) -> Samples:
    async def work(client: httpx.AsyncClient, _: FakeService) -> Samples:
        for path, body in requests:
            await client.post(path, json=body)
        response = await client.get("/metrics")
        assert response.headers["content-type"].startswith("text/plain")
        return samples_of(response.text)

    return talk(work)


def test_counts_of_tokens_prefixes_and_ends() -> None:
    prompt = "a prompt that is longer than two blocks of sixteen"
    samples = scrape_after(
        (COMPLETIONS, {"prompt": prompt, "max_tokens": 3, "n": 2}),
        (COMPLETIONS, {"prompt": prompt, "max_tokens": 100}),
        (COMPLETIONS, {"prompt": "x" * 1000}),
        (COMPLETIONS, {"prompt": "x", "n": 0}),
    )
    assert value(samples, "prompt_tokens_total", **LABELS) == 100
    assert value(samples, "generation_tokens_total", **LABELS) == 6 + 24
    assert value(samples, "prefix_cache_queries_total", **LABELS) == 100
    assert value(samples, "prefix_cache_hits_total", **LABELS) == 48
    assert value(samples, "request_success_total", **LABELS, finished_reason="length") == 2
    assert value(samples, "request_success_total", **LABELS, finished_reason="stop") == 1
    assert value(samples, "inter_token_latency_seconds_count", **LABELS) == 2 * 2 + 23
    assert value(samples, "time_to_first_token_seconds_count", **LABELS) == 3
    assert value(samples, "request_queue_time_seconds_count", **LABELS) == 2
    assert value(samples, "prompt_tokens_cached_total", **LABELS) == 48
    assert value(samples, "prompt_tokens_by_source_total", **LABELS, source="local_cache_hit") == 48
    assert value(samples, "prompt_tokens_by_source_total", **LABELS, source="local_compute") == 52
    assert value(samples, "request_max_num_generation_tokens_count", **LABELS) == 2
    assert value(samples, "request_params_max_tokens_sum", **LABELS) == 103
    assert not any(
        name == "request_success_total" and ("finished_reason", "abort") in labels for name, labels in samples
    )


def test_bytes_by_kind_and_tier() -> None:
    samples = scrape_after()
    assert value(samples, "memory_bytes", kind="weights", tier="ram") == 15 * MIB
    assert value(samples, "memory_bytes", kind="kv", tier="ram") == 4096 * KV_BYTES_PER_TOKEN
    assert value(samples, "memory_budget_bytes", tier="ram") == 64 * MIB
    assert value(samples, "pss_bytes") == 73 * MIB
    assert value(samples, "charged_bytes") == 75 * MIB
    assert value(samples, "kv_waste_ratio") == 0
    assert value(samples, "kv_cache_bytes", state="free") == 4096 * KV_BYTES_PER_TOKEN
    info = {"block_size": "16", "num_gpu_blocks": "256", "enable_prefix_caching": "False"}
    assert value(samples, "cache_config_info", **LABELS, **info) == 1


def test_metrics_while_loading_have_no_engine() -> None:
    async def run() -> str:
        async with client_of(create_app(ServerState())) as client:
            return (await client.get("/metrics")).text

    samples = samples_of(asyncio.run(run()))
    assert not any(name.startswith("num_requests") for name, _ in samples)


def test_two_apps_have_two_registries() -> None:
    talk(lambda client, _: client.post(CHAT, json={"messages": HELLO}))
    assert not any(name == "prompt_tokens_total" for name, _ in scrape_after())


def test_running_requests_show_in_memory_and_metrics() -> None:
    async def work(client: httpx.AsyncClient, _: FakeService) -> tuple[dict[str, Any], Samples, dict[str, Any]]:
        bodies = [{"prompt": "x" * 20, "max_tokens": 10, "request_id": name} for name in ("one", "two", "three")]
        tasks = [asyncio.create_task(client.post(COMPLETIONS, json=body)) for body in bodies]
        await asyncio.sleep(0.1)
        busy = (await client.get("/memory")).json()
        samples = samples_of((await client.get("/metrics")).text)
        await asyncio.gather(*tasks)
        return busy, samples, (await client.get("/memory")).json()

    busy, samples, idle = talk(work, step_s=0.04, max_running=2)
    assert (busy["requests"]["num_running"], busy["requests"]["num_waiting"], busy["requests"]["num_open"]) == (2, 1, 3)
    assert [row["request_id"] for row in busy["sequences"]] == ["cmpl-one", "cmpl-two"]
    assert busy["kv_bytes"]["used_bytes"] > 0
    assert 0 <= busy["now_s"] - busy["sequences"][0]["since_s"] < 60
    assert value(samples, "num_requests_running", **LABELS) == 2
    assert value(samples, "num_requests_waiting", **LABELS) == 1
    assert 0 < value(samples, "kv_cache_usage_perc", **LABELS) < 1
    assert 0 < value(samples, "kv_waste_ratio") < 1
    assert (idle["requests"]["num_open"], idle["sequences"], idle["kv_bytes"]["used_bytes"]) == (0, [], 0)
    assert idle["requests"]["generation_tokens"] == 30
    assert {"model", "phase", "uptime_s", "limits", "baseline_bytes", "process", "ledger", "kv"} <= set(idle)


def test_leases_inside_a_lease_count_once() -> None:
    memory = asyncio.run(FakeService().memory())
    view = memory_view(memory)
    assert view.bytes_by_kind["kv", "ram"] == 4096 * KV_BYTES_PER_TOKEN
    pool = kv_bytes(memory)
    assert pool["total_bytes"] == pool["used_bytes"] + pool["cached_bytes"] + pool["free_bytes"]


def output(index: int, *, num_output: int, finish_reason: FinishReason | None = None) -> GenerateOutput:
    return GenerateOutput(
        request_id="r",
        index=index,
        text="x",
        tokens=(SampledToken(token_id=1),),
        finish_reason=finish_reason,
        stop_reason=None,
        num_prompt_tokens=10,
        num_cached_tokens=4,
        num_output_tokens=num_output,
        queue_s=0.25,
    )


def test_the_timer_measures_first_tokens_gaps_and_ends() -> None:
    now_s = 100.0
    metrics = ServerMetrics(ServerState(FakeService()))
    timer = RequestTimer(metrics, num_choices=3, now=lambda: now_s, num_asked=3, max_tokens=64)
    timer.on_admitted()
    for at_s, index, num_output, reason in ((101.0, 0, 1, None), (103.0, 0, 2, "stop"), (104.0, 1, 1, None)):
        now_s = at_s
        timer.on_output(0, output(index, num_output=num_output, finish_reason=reason))  # type: ignore[arg-type]
    now_s = 110.0
    timer.on_close()
    timer.on_close()
    samples = samples_of(asyncio.run(metrics.render()).decode())
    assert value(samples, "time_to_first_token_seconds_sum", **LABELS) == 1 + 4
    assert value(samples, "inter_token_latency_seconds_sum", **LABELS) == 2
    assert value(samples, "e2e_request_latency_seconds_sum", **LABELS) == 3 + 10 + 10
    assert value(samples, "request_success_total", **LABELS, finished_reason="abort") == 2
    assert value(samples, "request_success_total", **LABELS, finished_reason="stop") == 1
    # Of the one choice that ended by itself: scheduled at 100.25, tokens at 101 and 103.
    assert value(samples, "request_decode_time_seconds_sum", **LABELS) == 2
    assert value(samples, "request_time_per_output_token_seconds_sum", **LABELS) == 2
    assert value(samples, "request_prefill_time_seconds_sum", **LABELS) == 0.75
    assert value(samples, "request_inference_time_seconds_sum", **LABELS) == 2.75
    assert value(samples, "request_queue_time_seconds_sum", **LABELS) == 0.25
    assert value(samples, "request_prompt_tokens_sum", **LABELS) == 10
    assert value(samples, "request_prefill_kv_computed_tokens_sum", **LABELS) == 6
    assert value(samples, "request_generation_tokens_sum", **LABELS) == 2
    assert value(samples, "request_max_num_generation_tokens_sum", **LABELS) == 2
    assert value(samples, "request_params_n_sum", **LABELS) == 3
    assert value(samples, "request_params_max_tokens_sum", **LABELS) == 64
    for name in ("request_decode_time_seconds", "request_params_n", "request_max_num_generation_tokens"):
        assert value(samples, f"{name}_count", **LABELS) == 1


@pytest.mark.parametrize(
    ("num_running", "generated", "expected"), [(0, 0, None), (1, 0, "generation 0.0"), (0, 10, "generation 5.0")]
)
def test_console_line(num_running: int, generated: int, expected: str | None) -> None:
    before = Totals(at_s=10, num_prompt_tokens=0, num_generation_tokens=0, num_prefix_queries=40, num_prefix_hits=10)
    after = Totals(
        at_s=12, num_prompt_tokens=0, num_generation_tokens=generated, num_prefix_queries=40, num_prefix_hits=10
    )
    told = interval(before, after, ServiceStats(num_running=num_running, num_waiting=0, kv_usage_ratio=0.5))
    line = None if told is None else told.line()
    assert line is None if expected is None else expected in (line or "")
    assert line is None or ("KV usage 50.0%" in line and "prefix hits 25.0%" in line)
