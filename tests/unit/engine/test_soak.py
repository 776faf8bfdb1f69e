# SPDX-License-Identifier: Apache-2.0
"""Two thousand random operations on a real engine: everything that was admitted ends, and every lease returns to zero."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.checkpoints import write_checkpoint
from tests.unit.engine.settings import FASTEST, Setting, load
from ziggurat.engine.engine import Engine
from ziggurat.engine.types import GenerateRequest
from ziggurat.errors import QueueFull, RequestError
from ziggurat.scheduling.sampling import SamplingParams

NUM_OPERATIONS = 2000


def random_request(rng: random.Random, number: int) -> GenerateRequest:
    beginning = [3 + (i * 7) % 250 for i in range(rng.choice((0, 8, 20, 33)))]
    own = [rng.randrange(2, 300) for _ in range(rng.choice((1, 5, 20, 40, 80)))]
    params = SamplingParams(
        n=rng.choice((1, 1, 1, 2, 3)),
        max_tokens=rng.choice((1, 2, 5, 12, None)),
        temperature=rng.choice((0, 1)),
        stop=rng.choice(((), ("a",), ("e", "th"))),
        logprobs=rng.choice((None, 2)),
        presence_penalty=rng.choice((0, 1)),
    )
    return GenerateRequest(request_id=f"r{number}", prompt_ids=[*beginning, *own], params=params)


class Soak:
    """Adds, aborts and steps at random; knows which continuations are owed an end."""

    def __init__(self, engine: Engine, seed: int) -> None:
        self.engine = engine
        self.rng = random.Random(seed)
        self.owed: set[tuple[str, int]] = set()
        self.reasons: dict[str, int] = {}
        self.num_added = self.num_refused = 0

    def operate(self) -> None:
        kind = self.rng.random()
        if kind < 0.25:
            self.add()
        elif kind < 0.35:
            open_ids = sorted({request_id for request_id, _ in self.owed})
            self.engine.abort(self.rng.choice([*open_ids, "nobody"]))
        else:
            self.step()

    def add(self) -> None:
        self.num_added += 1
        request = random_request(self.rng, self.num_added)
        try:
            self.engine.add(request)
        except (QueueFull, RequestError):
            self.num_refused += 1
            return
        self.owed |= {(request.request_id, index) for index in range(request.params.n)}

    def step(self) -> None:
        for output in self.engine.step():
            key = (output.request_id, output.index)
            assert key in self.owed, f"output of {key}, which has ended or never was"
            assert output.finish_reason != "error", output.error
            if output.finish_reason is not None:
                self.owed.remove(key)
                self.reasons[output.finish_reason] = self.reasons.get(output.finish_reason, 0) + 1


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_nothing_is_lost(tmp_path: Path, name: str) -> None:
    folder = write_checkpoint(tmp_path, name)
    setting = Setting(
        backend=FASTEST, max_num_seqs=4, max_num_batched_tokens=24, block_size=4, spare_blocks=6, has_prefix_cache=True
    )
    engine = load(folder, setting)
    soak = Soak(engine, seed=11)
    for operation in range(NUM_OPERATIONS):
        soak.operate()
        if operation % 100 == 0:
            engine.store.audit()
            engine.resources.ledger.audit()
    while engine.has_work:
        soak.step()
    assert not soak.owed
    assert set(soak.reasons) == {"stop", "length", "abort"} and soak.num_refused > 0
    counters = engine.core.counters
    assert counters.preemptions > 0 and counters.prefix_hit_tokens > 0 and counters.stalls == 0
    engine.store.drop_cache()
    assert all(stats.free == stats.total for stats in engine.store.stats())
    assert engine.resources.ledger.used(kind="kv") == engine.resources.kv_lease.num_bytes
    assert engine.resources.kv_lease.children_bytes == 0
    ledger = engine.resources.ledger
    engine.close()
    assert ledger.used() == 0
