# SPDX-License-Identifier: Apache-2.0
"""Two hundred thousand short requests through the scheduler, the KV store and the ledger, with an executor that computes nothing.

Acceptance: every admitted request ends, memory is flat, all leases return to zero.
"""

from __future__ import annotations

import gc
import random
from collections import Counter
from collections.abc import Iterable

import pytest

from ziggurat.clock import WallClock
from ziggurat.errors import QueueFull, RequestError
from ziggurat.memory.ledger import RAM, Ledger
from ziggurat.memory.machine import Machine
from ziggurat.memory.paged import PagedKVStore
from ziggurat.programs.program import KVGroup
from ziggurat.scheduling import planners
from ziggurat.scheduling.core import EngineCore
from ziggurat.scheduling.null import NullExecutor
from ziggurat.scheduling.outputs import Finished
from ziggurat.scheduling.protocol import TokenBudget
from ziggurat.scheduling.sampling import SamplingParams
from ziggurat.scheduling.sequence import Request

NUM_REQUESTS = 200_000
# The first part fills caches and pools; after it nothing may grow.
NUM_WARM = 40_000
NUM_BLOCKS = 400
BLOCK_BYTES = 4096
# A page table of the interpreter's arenas moves by some pages; one object of 100 bytes per request would be 16 MB.
MAX_GROWTH_BYTES = 4 << 20
MAX_NEW_OBJECTS = 2_000
BEGINNINGS = [tuple(range(base, base + 40)) for base in range(0, 20_000, 1000)]


class Soak:
    """Adds, aborts and steps; knows which continuations are owed an end."""

    def __init__(self, planner: str) -> None:
        self.rng = random.Random(planner)
        self.ledger = Ledger({RAM: NUM_BLOCKS * BLOCK_BYTES}, WallClock())
        self.lease = self.ledger.reserve("kv", "kv store", RAM, NUM_BLOCKS * BLOCK_BYTES)
        group = KVGroup(index=0, layers=(0,), num_kv_heads=1, head_dim=1, window=None)
        self.store = PagedKVStore([group], [NUM_BLOCKS], 16, lease=self.lease, block_bytes=(BLOCK_BYTES,))
        self.core = EngineCore(
            self.store,
            planners.resolve(planner),
            NullExecutor(eos_rate=0.1),
            TokenBudget(max_num_batched_tokens=512, max_num_seqs=64),
            max_model_len=256,
            block_bytes=(BLOCK_BYTES,),
            eos_ids=(2,),
            max_queued_requests=128,
        )
        self.owed: set[str] = set()
        self.reasons: Counter[str] = Counter()
        self.num_sent = self.num_admitted = self.num_refused = self.num_steps = 0

    def add(self) -> None:
        number, rng = self.num_sent, self.rng
        self.num_sent += 1
        beginning = rng.choice(BEGINNINGS)[: rng.choice((0, 16, 40))]
        own = range(number % 30_000, number % 30_000 + rng.randint(1, 24))
        params = SamplingParams(n=rng.choice((1, 1, 1, 2)), max_tokens=rng.randint(1, 8), seed=number)
        request = Request(request_id=f"r{number}", prompt_ids=(*beginning, *own), params=params)
        try:
            added = self.core.add(request, self.num_steps / 100)
        except (QueueFull, RequestError):
            self.num_refused += 1
            return
        self.num_admitted += 1
        self.owed.update(added)

    def step(self) -> None:
        self.num_steps += 1
        self.take(self.core.step(self.num_steps / 100).finished)

    def take(self, ends: Iterable[Finished]) -> None:
        """Each continuation ends once."""
        for end in ends:
            self.owed.remove(end.seq_id)
            self.reasons[end.reason] += 1

    def run_to(self, num_requests: int) -> None:
        """Until so many requests have been taken, some of which leave early."""
        while self.num_admitted < num_requests:
            for _ in range(self.rng.randint(0, 30)):
                self.add()
            if self.rng.random() < 0.3:
                self.take(self.core.abort(f"r{self.rng.randint(max(0, self.num_sent - 100), self.num_sent)}"))
            self.step()

    def drain(self) -> None:
        while self.core.has_work:
            self.step()


def measure() -> tuple[int, int]:
    """Resident bytes, and objects that the interpreter follows."""
    gc.collect()
    return Machine().rss_bytes(), len(gc.get_objects())


@pytest.mark.parametrize("planner", ["sarathi", "prefill-priority"])
def test_two_hundred_thousand_requests_leave_nothing_behind(planner: str) -> None:
    soak = Soak(planner)
    soak.run_to(NUM_WARM)
    soak.drain()
    warm_bytes, warm_objects = measure()
    soak.run_to(NUM_REQUESTS)
    soak.drain()
    end_bytes, end_objects = measure()
    assert soak.num_admitted >= NUM_REQUESTS and soak.num_refused > 0
    assert not soak.owed
    assert set(soak.reasons) == {"stop", "length", "abort"}
    assert soak.core.counters.stalls == 0
    assert soak.core.counters.prefix_hit_tokens > 0
    assert end_bytes - warm_bytes <= MAX_GROWTH_BYTES, (warm_bytes, end_bytes)
    assert end_objects - warm_objects <= MAX_NEW_OBJECTS, (warm_objects, end_objects)
    soak.store.audit()
    soak.store.drop_cache()
    assert all(stats.free == stats.total for stats in soak.store.stats())
    assert soak.lease.children_bytes == 0
    soak.store.close()
    soak.lease.release()
    soak.ledger.audit()
    assert soak.ledger.used() == 0
    print(
        f"{planner}: {soak.num_admitted} requests ({soak.num_refused} refused), {soak.num_steps} steps, ends {dict(soak.reasons)}, "
        f"rss {end_bytes - warm_bytes:+d} bytes, objects {end_objects - warm_objects:+d}"
    )
