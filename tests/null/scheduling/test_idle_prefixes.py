# SPDX-License-Identifier: Apache-2.0
"""What idle conversations have computed goes down to the swap space and comes back, bit for bit, whatever else happens meanwhile."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kv_check import HashingExecutor, expected_tokens
from tests.preempting import Preempting
from tests.stores import small_store
from ziggurat.memory.forest import PrefixForest, next_digest, root_digest
from ziggurat.memory.swap import SwapSpace
from ziggurat.scheduling import planners
from ziggurat.scheduling.core import EngineCore
from ziggurat.scheduling.planners import PLANNERS
from ziggurat.scheduling.preemption import PREEMPTION_MODES
from ziggurat.scheduling.protocol import TokenBudget
from ziggurat.scheduling.sampling import SamplingParams
from ziggurat.scheduling.sequence import Request, derive_seed

BLOCK = 4


@dataclass
class Chats:
    """Conversations that take turns; every answer is compared with one computed without any engine."""

    core: EngineCore
    rng: random.Random
    histories: dict[str, list[int]] = field(default_factory=dict)
    num_prompt_tokens: int = 0

    def turn(self, names: list[str], new: int, answer: int, salts: dict[str, str]) -> None:
        seeds: dict[str, int] = {}
        for name in names:
            history = self.histories.setdefault(name, [])
            history += [self.rng.randrange(200) for _ in range(new)]
            seeds[name] = self.rng.randrange(1000)
            params = SamplingParams(max_tokens=answer, ignore_eos=True, seed=seeds[name])
            self.core.add(
                Request(request_id=name, prompt_ids=list(history), params=params, cache_salt=salts[name]), 0.0
            )
            self.num_prompt_tokens += len(history)
        found: dict[str, list[int]] = {name: [] for name in names}
        while self.core.has_work:
            output = self.core.step(0.0)
            assert output.error is None
            for token in output.tokens:
                found[token.seq_id.partition("/")[0]].append(token.token.token_id)
            self.core.store.audit()
        for name in names:
            assert found[name] == expected_tokens(self.histories[name], derive_seed(seeds[name], 0), answer, 256), name
            self.histories[name] += found[name]


def make(blocks: int, slots: int, *, planner: str = "sarathi", mode: str = "swap", period: int = 0) -> EngineCore:
    chosen = planners.resolve(planner)
    return EngineCore(
        small_store(blocks, max_chunk_tokens=16),
        Preempting(chosen, period=period, times=10) if period else chosen,
        HashingExecutor(),
        TokenBudget(max_num_batched_tokens=16, max_num_seqs=4),
        max_model_len=96,
        block_bytes=[1],
        swap=SwapSpace(slots, 1, BLOCK) if slots else None,
        preemption_mode=PREEMPTION_MODES.get(mode),
    )


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    planner=st.sampled_from(PLANNERS.names()),
    blocks=st.integers(24, 40),
    slots=st.sampled_from([1, 3, 10, 40, 200]),
    mode=st.sampled_from(PREEMPTION_MODES.names()),
    period=st.sampled_from([0, 0, 3]),
)
def test_answers_do_not_depend_on_what_left_the_pool(
    seed: int, planner: str, blocks: int, slots: int, mode: str, period: int
) -> None:
    rng = random.Random(seed)
    core = make(blocks, slots, planner=planner, mode=mode, period=period)
    chats = Chats(core, rng)
    names = [f"c{number}" for number in range(5)]
    salts = {name: rng.choice(["", "", "b"]) for name in names}
    for _ in range(6):
        chats.turn(rng.sample(names, rng.randint(1, 3)), rng.randint(1, 6), rng.randint(1, 5), salts)
        assert core.swapper is not None
        core.swapper.space.audit()
    stats = core.swapper.space.stats()
    assert stats.waiting == stats.running == 0


def run_round_robin(slots: int, mode: str = "swap") -> Chats:
    """Six conversations one after another, five turns each, in a pool that holds two of them."""
    chats = Chats(make(24, slots, mode=mode), random.Random(3))
    names = [f"c{number}" for number in range(6)]
    for _ in range(5):
        for name in names:
            chats.turn([name], 6, 4, dict.fromkeys(names, ""))
    return chats


def computed(chats: Chats) -> int:
    counters = chats.core.counters
    return chats.num_prompt_tokens - counters.prefix_hit_tokens - counters.swapped_in_tokens


def test_nothing_is_computed_twice_while_there_is_room() -> None:
    roomy, without = run_round_robin(200), run_round_robin(0)
    most = (
        6 * 5 * (6 + 1 + BLOCK)
    )  # a turn's own tokens, the last one of the answer before it, and what did not fill a block
    assert roomy.core.counters.swapped_in_tokens > 0
    assert computed(roomy) <= most < computed(without)


def test_with_too_few_slots_the_latest_prefixes_stay() -> None:
    few, many = run_round_robin(20), run_round_robin(200)
    assert 0 <= few.core.counters.swapped_in_tokens < many.core.counters.swapped_in_tokens
    assert few.core.swapper is not None and few.core.swapper.space.stats().prefixes <= 20


def test_the_mode_that_recomputes_copies_nothing() -> None:
    counters = run_round_robin(200, mode="recompute").core.counters
    assert counters.swapped_in_tokens == counters.swapped_out_tokens == 0


def test_a_failed_batch_leaves_no_copy_that_could_be_wrong() -> None:
    chats = run_round_robin(200)
    swapper = chats.core.swapper
    assert swapper is not None and swapper.space.stats().prefixes > 0
    swapper.on_failure()
    assert swapper.space.stats().prefixes == 0
    swapper.space.audit()


def test_outside_of_a_step_nothing_is_kept() -> None:
    """Adapters and a smaller budget take blocks whose bytes nobody copies first."""
    chats = run_round_robin(200)
    store, swapper = chats.core.store, chats.core.swapper
    assert swapper is not None
    before = swapper.space.stats().prefixes
    store.open("adapter", [1], max_cached=0)
    store.reserve("adapter", 16)
    store.commit("adapter", [1] * 16)
    store.reserve("adapter", 16)
    assert swapper.space.stats().prefixes == before and not swapper.moves


def test_digests_tell_salts_and_prefixes_apart() -> None:
    forest = PrefixForest(2, 1)
    one = forest.insert(forest.root("a"), (1, 2), [0])
    two = forest.insert(one, (3, 4), [1])
    other = forest.insert(forest.root("b"), (1, 2), [2])
    assert two.digest == next_digest(next_digest(root_digest("a"), [1, 2]), [3, 4])
    assert len({one.digest, two.digest, other.digest}) == 3


def test_a_dropped_cache_is_dropped_everywhere() -> None:
    """A reset, or an adapter that goes: its name may come back with other numbers, and cached KV is found by the name."""
    chats = run_round_robin(200)
    assert chats.core.swapper is not None and chats.core.swapper.space.stats().prefixes > 0
    chats.core.store.drop_cache()
    before = chats.core.counters.swapped_in_tokens
    assert chats.core.swapper.space.stats().prefixes == 0
    chats.core.swapper.space.audit()
    chats.turn(["c0"], 6, 4, {"c0": ""})
    assert chats.core.counters.swapped_in_tokens == before
