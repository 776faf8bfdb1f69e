# SPDX-License-Identifier: Apache-2.0
"""A replay against the real engine in this process: the tokens are those of the engine, the records are whole, sessions hit the cache."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.checkpoints import write_checkpoint
from tests.unit.engine.settings import FASTEST, Setting, load
from ziggurat.engine.client import EngineClient
from ziggurat.engine.engine import Engine
from ziggurat.engine.types import GenerateRequest
from ziggurat.scheduling.sampling import SamplingParams
from ziggurat.workload.records import Arrival
from ziggurat.workload.replay import replay
from ziggurat.workload.sources import ClosedLoop, Conversation, OpenLoop


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("llama"), "llama", with_tokenizer=False)


def answer(engine: Engine, arrival: Arrival) -> list[int]:
    params = SamplingParams(temperature=0, max_tokens=arrival.max_new, ignore_eos=True)
    engine.add(GenerateRequest(request_id="alone", prompt_ids=arrival.prompt(engine.model.vocab_size), params=params))
    token_ids: list[int] = []
    while engine.has_work:
        token_ids += [token.token_id for output in engine.step() for token in output.tokens]
    return token_ids


def test_an_open_loop_serves_the_engines_tokens(folder: Path) -> None:
    arrivals = [Arrival(t_s=0.02 * index, id=f"r{index}", prompt_len=9 + index, max_new=5) for index in range(4)]
    steps_s: list[float] = []
    with load(folder, Setting(backend=FASTEST)) as engine:
        found = replay(OpenLoop(arrivals), EngineClient(engine, on_step=steps_s.append))
        assert [found.answers[each.id] for each in arrivals] == [answer(engine, each) for each in arrivals]
    assert all(record.num_output_tokens == 5 and record.reason == "length" for record in found.records)
    for record in found.records:
        assert record.queue_s is not None and record.ttft_s is not None
        assert 0 <= record.queue_s <= record.ttft_s, "the first step is no part of the wait"
    assert len(steps_s) >= 5


def test_turns_find_the_conversation_in_the_cache_and_salts_keep_apart(folder: Path) -> None:
    loop = [Conversation(id="c", turns=((20, 5), (6, 5), (6, 5)))]
    with load(folder, Setting(backend=FASTEST, block_size=4, has_prefix_cache=True)) as engine:
        cached = []
        for salt in ("one", "two"):
            found = replay(ClosedLoop(loop, 1, vocab_size=100), EngineClient(engine, salt=salt))
            cached.append([record.num_cached_tokens for record in found.records])
    assert cached == [[0, 24, 32]] * 2
