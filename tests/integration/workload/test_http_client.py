# SPDX-License-Identifier: Apache-2.0
"""A replay over HTTP against a server process with the fake service: every token counted, refusals and dead servers recorded."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.server_process import ServerProcess, fake_server
from ziggurat.cli.main import main
from ziggurat.errors import ConfigError
from ziggurat.workload.http_client import HTTPClient
from ziggurat.workload.metrics import summarize
from ziggurat.workload.records import Arrival
from ziggurat.workload.replay import replay
from ziggurat.workload.sources import ClosedLoop, Conversation, OpenLoop


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with fake_server(step_s=0.005) as process:
        yield process


def arrival(name: str, t_s: float, prompt_len: int = 20, max_new: int = 6, n: int = 1) -> Arrival:
    return Arrival(t_s=t_s, id=name, prompt_len=prompt_len, max_new=max_new, n=n)


def test_an_open_loop_counts_every_token(server: ServerProcess) -> None:
    arrivals = [arrival("a", 0.0), arrival("b", 0.02, n=2), arrival("too long", 0.04, prompt_len=600)]
    found = replay(OpenLoop(arrivals), HTTPClient(server.url + "/v1"))
    assert [(r.id, r.reason, r.num_output_tokens) for r in found.records] == [
        ("a", "length", 6),
        ("b", "length", 12),
        ("too long", "error", 0),
    ]
    assert "maximum context length" in str(found.records[2].error)
    summary = summarize(found.records)
    assert (summary["completed"], summary["failed"], summary["total_output_tokens"]) == (2, 1, 18)
    assert all(record.ttft_s is not None and record.ttft_s > 0 for record in found.records[:2])
    assert found.drift.max_s < 1


def test_a_closed_loop_has_one_open_request_per_client(server: ServerProcess) -> None:
    conversations = [Conversation(id=f"c{index}", turns=((8, 4), (3, 4))) for index in range(4)]
    found = replay(ClosedLoop(conversations, 2, vocab_size=200), HTTPClient(server.url))
    assert [record.num_prompt_tokens for record in found.records if record.id.endswith(".1")] == [15] * 4
    assert summarize(found.records)["max_concurrent_requests"] == 2
    assert all(record.is_success for record in found.records)


def test_a_server_that_dies_fails_the_requests() -> None:
    with fake_server(step_s=0.05) as server:
        client = HTTPClient(server.url)
        client.submit(arrival("a", 0.0, max_new=100), client.now())
        while not any(event.num_tokens for event in client.poll(client.now() + 1)):
            pass
        server.process.kill()
        deadline_s = time.monotonic() + 20
        events = []
        while not any(event.end for event in events):
            assert time.monotonic() < deadline_s
            events += client.poll(client.now() + 0.1)
        assert events[-1].end == "error"
    with pytest.raises(ConfigError, match="no server answers at 127.0.0.1"):
        HTTPClient(server.url)


def test_addresses_that_are_none() -> None:
    with pytest.raises(ConfigError, match="must look like http://127.0.0.1:8000"):
        HTTPClient("127.0.0.1:8000")


def test_bench_serve_measures_a_server(server: ServerProcess, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--num-prompts", "5", "--random-input-len", "9", "--random-output-len", "4", "--request-rate", "100"]
    assert main(["bench", "serve", "--base-url", server.url, *flags]) == 0
    screen = capsys.readouterr().out
    assert "Successful requests:                    5" in screen
    assert "Total generated tokens:                 20" in screen
