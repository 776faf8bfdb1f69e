# SPDX-License-Identifier: Apache-2.0
"""Swapping through the whole core with an executor whose arithmetic is a hash of every block it reads: texts are those without preemption,
no slot is lost, and copies move only what was computed since."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kv_check import HashingExecutor, expected_tokens
from tests.preempting import Preempting
from tests.seam import make_script, replay
from tests.stores import small_store
from ziggurat.memory.swap import SwapSpace
from ziggurat.scheduling import planners
from ziggurat.scheduling.core import EngineCore
from ziggurat.scheduling.planners import PLANNERS
from ziggurat.scheduling.preemption import PREEMPTION_MODES, PreemptionCosts
from ziggurat.scheduling.protocol import Batch, StepResult, TokenBudget
from ziggurat.scheduling.sampling import SamplingParams
from ziggurat.scheduling.sequence import Request, derive_seed

SWAP = PREEMPTION_MODES.get("swap")


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10_000),
    st.sampled_from(PLANNERS.names()),
    st.integers(24, 40),
    st.integers(1, 60),
    st.sampled_from(PREEMPTION_MODES.names()),
    st.integers(2, 5),
)
def test_texts_do_not_depend_on_swapping(
    seed: int, planner: str, blocks: int, slots: int, mode: str, period: int
) -> None:
    script = make_script(seed)
    swap = SwapSpace(slots, 1, 4)
    found = replay(
        script,
        HashingExecutor,
        planner=Preempting(planners.resolve(planner), period=period, times=20),
        make_store=lambda: small_store(blocks, max_chunk_tokens=16),
        swap=swap,
        preemption_mode=PREEMPTION_MODES.get(mode),
    )
    plain = replay(script, HashingExecutor, planner=planner, make_store=lambda: small_store(40, max_chunk_tokens=16))
    for seq_id, tokens in found.tokens.items():
        both = min(len(tokens), len(plain.tokens[seq_id]))
        assert tokens[:both] == plain.tokens[seq_id][:both], seq_id
    swap.audit()
    assert swap.stats().waiting == swap.stats().running == 0
    counters = found.core.counters
    assert counters.swapped_in_tokens == counters.swapped_out_tokens == 0 or mode != "recompute"


def one_request(slots: int, *, times: int = 6, prompt: int = 30, new: int = 20) -> tuple[EngineCore, list[int]]:
    """A single request that is preempted again and again, with its tokens."""
    store = small_store(40, max_chunk_tokens=16)
    core = EngineCore(
        store,
        Preempting(planners.resolve("sarathi"), period=4, times=times),
        HashingExecutor(),
        TokenBudget(max_num_batched_tokens=16, max_num_seqs=4),
        max_model_len=96,
        block_bytes=[1],
        swap=SwapSpace(slots, 1, 4),
        preemption_mode=SWAP,
    )
    core.add(
        Request(
            request_id="a",
            prompt_ids=list(range(prompt)),
            params=SamplingParams(max_tokens=new, ignore_eos=True, seed=5),
        ),
        0.0,
    )
    tokens: list[int] = []
    step = 0
    while core.has_work:
        # Nothing may be found in the prefix cache, so that what comes back comes from the copies.
        store.drop_cache()
        tokens += [new.token.token_id for new in core.step(float(step)).tokens]
        step += 1
    return core, tokens


def test_nothing_is_computed_twice_and_only_news_are_copied() -> None:
    core, tokens = one_request(20)
    counters = core.counters
    assert counters.preemptions == 6 and counters.recomputed_tokens == 0
    assert counters.swapped_in_tokens > counters.swapped_out_tokens, "a copy is used again and again"
    assert counters.swapped_out_tokens <= 50 + 6 * 4, "each token once, and the last block of each time again"
    assert tokens == expected_tokens(list(range(30)), derive_seed(5, 0), 20, 256)


def test_without_room_it_is_computed_again() -> None:
    core, tokens = one_request(3)
    assert core.counters.recomputed_tokens > 0 and len(tokens) == 20


def test_a_failed_batch_trusts_no_copy() -> None:
    class Failing(HashingExecutor):
        num_failures = 0

        def run(self, batch: Batch) -> StepResult:
            if any(move.direction == "in" for move in batch.moves) and not self.num_failures:
                self.num_failures += 1
                raise RuntimeError("broken")
            return super().run(batch)

    store = small_store(12, max_chunk_tokens=16)
    core = EngineCore(
        store,
        Preempting(planners.resolve("sarathi"), period=4, times=6),
        Failing(),
        TokenBudget(max_num_batched_tokens=16, max_num_seqs=4),
        max_model_len=48,
        block_bytes=[1],
        swap=SwapSpace(30, 1, 4),
        preemption_mode=SWAP,
    )
    tokens: dict[str, list[int]] = {}
    for number in range(6):
        params = SamplingParams(max_tokens=8, ignore_eos=True, seed=number)
        core.add(Request(request_id=str(number), prompt_ids=[1, 2, 3, 4, 5, 6, 7, 8, number], params=params), 0.0)
    reasons = {}
    for step in range(500):
        output = core.step(float(step))
        store.audit()
        for new in output.tokens:
            tokens.setdefault(new.seq_id, []).append(new.token.token_id)
        reasons |= {end.seq_id: end.reason for end in output.finished}
        if not core.has_work:
            break
    assert sorted(reasons) == [f"{number}/0" for number in range(6)] and "error" in reasons.values()
    for number in range(6):
        if reasons[f"{number}/0"] == "length":
            expected = expected_tokens([1, 2, 3, 4, 5, 6, 7, 8, number], derive_seed(number, 0), 8, 256)
            assert tokens[f"{number}/0"] == expected
    assert core.swapper is not None
    core.swapper.space.audit()


def test_auto_weighs_copies_against_computing() -> None:
    auto = PREEMPTION_MODES.get("auto")
    assert auto(100, 100, PreemptionCosts())
    assert auto(100, 100, PreemptionCosts(copy_s=1e-6, compute_s=1e-5))
    assert not auto(100, 100, PreemptionCosts(copy_s=1e-5, compute_s=1e-5))
    assert auto(0, 100, PreemptionCosts(copy_s=0.9e-5, compute_s=1e-5)), (
        "a copy that is there already costs one way only"
    )


OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["store", "fetch", "drop"]), st.integers(0, 4), st.integers(1, 30)), max_size=40
)


@given(OPERATIONS, st.integers(1, 20))
def test_a_swap_space_is_what_its_moves_say(operations: list[tuple[str, int, int]], slots: int) -> None:
    """A model of the bytes: what comes back is what went out last."""
    space, block_size = SwapSpace(slots, 2, 4), 4
    computed: dict[str, int] = {}
    waiting: dict[str, int] = {}
    host: dict[tuple[int, int], tuple[str, int, int]] = {}
    for kind, number, amount in operations:
        name = f"s{number}"
        if kind == "store" and name not in waiting:
            computed[name] = computed.get(name, 0) + amount
            if not space.can_store(name, computed[name]):
                space.drop(name)
                continue
            blocks = -(-computed[name] // block_size)
            tables = [[1000 * group + index for index in range(blocks)] for group in range(2)]
            for move in space.store(name, tables, computed[name]):
                index = move.block % 1000
                host[move.group, move.slot] = (name, index, min(computed[name], (index + 1) * block_size))
            waiting[name] = computed[name]
        elif kind == "fetch" and name in waiting:
            end = space.tokens(name)
            assert end == waiting.pop(name)
            blocks = -(-end // block_size)
            tables = [[1000 * group + index for index in range(blocks)] for group in range(2)]
            moves = space.fetch(name, tables, 0, end)
            assert len(moves) == 2 * blocks
            for move in moves:
                owner, index, good = host[move.group, move.slot]
                assert (owner, index) == (name, move.block % 1000) and good >= min(end, (index + 1) * block_size)
        elif kind == "drop":
            space.drop(name)
            waiting.pop(name, None)
            computed.pop(name, None)
        space.audit()
        stats = space.stats()
        assert stats.waiting + stats.running <= slots
