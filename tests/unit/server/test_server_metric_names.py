# SPDX-License-Identifier: Apache-2.0
"""The names of the metrics are those of docs/metrics.md, under our prefix and, on demand, under vLLM's; its labels and buckets too."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from tests.fake_service import FakeService
from tests.server_client import CHAT, HELLO, talk
from ziggurat.server.config import ServerConfig
from ziggurat.server.metric_families import OURS, PREFIX, VLLM_PREFIX

PAGE = (Path(__file__).parents[3] / "docs" / "metrics.md").read_text(encoding="utf-8")
# From vLLM's documentation of its metrics: the first and the last bucket of each kind.
ENDS = {
    "time_to_first_token_seconds": ("0.001", "2560.0"),
    "inter_token_latency_seconds": ("0.01", "80.0"),
    "request_time_per_output_token_seconds": ("0.01", "80.0"),
    "e2e_request_latency_seconds": ("0.3", "7680.0"),
    "request_queue_time_seconds": ("0.3", "7680.0"),
    "request_inference_time_seconds": ("0.3", "7680.0"),
    "request_prefill_time_seconds": ("0.3", "7680.0"),
    "request_decode_time_seconds": ("0.3", "7680.0"),
    "request_params_n": ("1.0", "20.0"),
}


def described(heading: str) -> dict[str, str]:
    """Name -> kind of the table below a heading."""
    section = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return dict(re.findall(r"^\| `(\w+)` \| (\w+) \|", section, re.MULTILINE))


def families(config: ServerConfig | None = None) -> dict[str, Metric]:
    """What is exported after one request, by full name as it is read."""

    async def work(client: httpx.AsyncClient, _: FakeService) -> str:
        await client.post(CHAT, json={"messages": HELLO, "max_tokens": 5})
        return (await client.get("/metrics")).text

    found = {}
    for family in text_string_to_metric_families(talk(work, config)):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        assert name not in found, f"{name} is there twice"
        if not name.endswith("_created"):
            found[name] = family
    return found


def test_the_page_and_the_server_have_the_same_names_and_kinds() -> None:
    both = described("As vLLM has them") | described("Ours")
    assert len(both) == len(described("As vLLM has them")) + len(described("Ours"))
    assert {name: family.type for name, family in families().items()} == {
        PREFIX + name: kind for name, kind in both.items()
    }


def test_what_is_ours_is_listed_as_ours() -> None:
    assert {name.removesuffix("_total") for name in described("Ours")} == set(OURS)


def test_doubled_for_dashboards_of_vllm() -> None:
    exported = families(ServerConfig(metrics_compat="vllm"))
    doubled = {name.removeprefix(VLLM_PREFIX) for name in exported if name.startswith(VLLM_PREFIX)}
    assert doubled == set(described("As vLLM has them"))
    for name in doubled:
        ours, theirs = exported[PREFIX + name], exported[VLLM_PREFIX + name]
        assert ours.type == theirs.type
        assert [(s.name.removeprefix(PREFIX), s.labels, s.value) for s in ours.samples] == [
            (s.name.removeprefix(VLLM_PREFIX), s.labels, s.value) for s in theirs.samples
        ]


def test_every_metric_of_vllms_has_its_labels() -> None:
    exported = families()
    for name in described("As vLLM has them"):
        samples = exported[PREFIX + name].samples
        assert samples, name
        assert all({"model_name": "fake-1", "engine": "0"}.items() <= sample.labels.items() for sample in samples), name


@pytest.mark.parametrize("name", ENDS)
def test_buckets(name: str) -> None:
    samples = families()[PREFIX + name].samples
    bounds = [sample.labels["le"] for sample in samples if sample.name.endswith("_bucket")]
    assert (bounds[0], bounds[-2], bounds[-1]) == (*ENDS[name], "+Inf")
