# SPDX-License-Identifier: Apache-2.0
"""Another budget while the engine runs: nothing is lost, the same bits, pages go back, refusals change nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.checkpoints import write_checkpoint
from tests.unit.engine.settings import FASTEST, MAX_MODEL_LEN
from ziggurat.engine.config import EngineConfig
from ziggurat.engine.engine import Engine
from ziggurat.engine.types import GenerateRequest
from ziggurat.errors import DoesNotFit
from ziggurat.memory.fit import smallest_budget
from ziggurat.memory.ledger import RAM
from ziggurat.scheduling.sampling import SamplingParams

MIB = 1 << 20
PROMPTS = [[5 + (7 * number + place) % 80 for place in range(40 + number)] for number in range(6)]
CONFIG = EngineConfig(
    memory="32MiB",
    max_model_len=MAX_MODEL_LEN,
    block_size=4,
    max_num_seqs=6,
    max_num_batched_tokens=24,
    kernels=FASTEST,
    threads=1,
    kv_cache_dtype="fp32",
)


@pytest.fixture(scope="module", params=["qwen2", "gemma2"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One with full attention alone and one with windows, which has two KV groups."""
    return write_checkpoint(tmp_path_factory.mktemp("model"), request.param, dtype=torch.bfloat16, with_tokenizer=False)


def least_bytes(engine: Engine) -> int:
    return smallest_budget(engine.fit.plan, engine.fit.request.overhead_bytes, MAX_MODEL_LEN)


def answers(engine: Engine, budgets: dict[int, int]) -> tuple[dict[str, list[int]], int]:
    """Tokens of all prompts, served together, and how many were preempted; ``budgets`` are set before those steps."""
    found: dict[str, list[int]] = {}
    for number, prompt in enumerate(PROMPTS):
        params = SamplingParams(temperature=1.0, seed=number, max_tokens=30, ignore_eos=True)
        engine.add(GenerateRequest(request_id=str(number), prompt_ids=prompt, params=params))
        found[str(number)] = []
    step = num_preempted = 0
    while engine.has_work:
        if step in budgets:
            change = engine.set_memory(budgets[step])
            num_preempted += change.num_preempted
            check(engine, budgets[step])
        for output in engine.step():
            assert output.error is None
            found[output.request_id] += [token.token_id for token in output.tokens]
        step += 1
    assert step > max(budgets, default=0)
    engine.store.audit()
    return found, num_preempted


def check(engine: Engine, budget: int) -> None:
    engine.store.audit()
    engine.resources.ledger.audit()
    assert engine.resources.ledger.limit(RAM) == budget == engine.resources.ledger.used(RAM)
    blocks = engine.store.total_blocks()
    (pool,) = [row for row in engine.resources.ledger.rows() if row.kind == "kv" and row.depth == 0]
    assert pool.why.startswith(f"pool of {' + '.join(map(str, blocks))} blocks")
    assert blocks == engine.fit.num_blocks
    groups = engine.fit.plan.program.kv_groups()
    for pool, group, count in zip(engine.resources.pools, groups, blocks, strict=True):
        # A page that a block in circulation shares with a retired one stays.
        edge = 2 * 4096 * count
        assert pool.resident_bytes() <= count * engine.fit.plan.block_bytes(group) + edge


@pytest.mark.parametrize("swap", [0, "1MiB"])
def test_shrunk_and_grown_under_load_the_answers_are_the_same_bits(folder: Path, swap: str | int) -> None:
    config = replace(CONFIG, model=str(folder))
    with Engine.load(config) as engine:
        expected, _ = answers(engine, {})
        least, most = least_bytes(engine), engine.fit.request.memory_bytes
    if swap and len(engine.fit.plan.program.kv_groups()) > 1:
        pytest.skip("no swap space for models with windows")
    with Engine.load(replace(config, swap_space=swap, preemption_mode="swap" if swap else "auto")) as engine:
        found, num_preempted = answers(engine, {6: least, 30: most, 33: least + (most - least) // 40})
        assert found == expected
        assert num_preempted > 0
        assert engine.set_memory(most).num_preempted == 0
        check(engine, most)
        assert answers(engine, {})[0] == expected


def test_impossible_budgets_change_nothing(folder: Path) -> None:
    with Engine.load(replace(CONFIG, model=str(folder))) as engine:
        before = engine.memory()["ledger"]
        with pytest.raises(DoesNotFit, match="does not hold the model and one request of 96 tokens"):
            engine.set_memory(least_bytes(engine) - 1)
        with pytest.raises(DoesNotFit, match="more than this engine was started with"):
            engine.set_memory(64 * MIB)
        assert engine.memory()["ledger"] == before
        assert engine.set_memory(least_bytes(engine)).after_bytes == least_bytes(engine)


def test_idle_prefixes_go_to_the_swap_space_for_a_smaller_budget(folder: Path) -> None:
    config = replace(CONFIG, model=str(folder), swap_space="1MiB", preemption_mode="swap")
    with Engine.load(replace(config, swap_space=0, preemption_mode="auto")) as engine:
        if len(engine.fit.plan.program.kv_groups()) > 1:
            pytest.skip("no swap space for models with windows")
        expected, _ = answers(engine, {})
    with Engine.load(config) as engine:
        assert answers(engine, {})[0] == expected
        engine.set_memory(least_bytes(engine))
        assert engine.memory()["swap"]["num_prefix_slots"] > 0
        before = engine.core.counters.swapped_in_tokens
        assert answers(engine, {})[0] == expected
        assert engine.core.counters.swapped_in_tokens > before


def test_cached_prefixes_leave_for_a_smaller_budget(folder: Path) -> None:
    with Engine.load(replace(CONFIG, model=str(folder))) as engine:
        answers(engine, {})
        cached = sum(stats.cached for stats in engine.store.stats())
        change = engine.set_memory(least_bytes(engine))
        assert 0 < change.num_evicted_blocks <= cached and change.num_preempted == 0
        check(engine, least_bytes(engine))
