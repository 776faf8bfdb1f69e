# SPDX-License-Identifier: Apache-2.0
"""The seam: the same script through the executor of Plans, the null executor and simulated time gives the same decisions."""

from __future__ import annotations

from functools import cache

import pytest

from tests import seam
from tests.checkpoints import write_checkpoint
from tests.unit.engine.rig import Rig
from ziggurat.clock import VirtualClock
from ziggurat.kernels.ops import load_native
from ziggurat.memory.paged import PagedKVStore
from ziggurat.programs.plan import Limits
from ziggurat.scheduling.null import NullExecutor
from ziggurat.scheduling.planners import PLANNERS
from ziggurat.scheduling.protocol import Executor, TokenBudget
from ziggurat.simulation.executor import SimulatedExecutor, linear_cost

LIMITS = Limits(max_model_len=96, max_num_seqs=6, max_num_batched_tokens=16, block_size=4)
NUM_BLOCKS = 26


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Rig:
    """Two KV groups: one full, one windowed."""
    folder = write_checkpoint(tmp_path_factory.mktemp("seam"), "qwen2_window", with_tokenizer=False)
    backend = "torch" if load_native() is None else "native"
    return Rig(folder, backend=backend, limits=LIMITS)


@cache
def blocks(rig: Rig) -> tuple[int, ...]:
    return (NUM_BLOCKS,) * len(rig.program.kv_groups())


def replay(rig: Rig, executor: Executor, planner: str, seed: int) -> seam.Replay:
    groups = rig.program.kv_groups()
    block_bytes = [rig.plan.block_bytes(group) for group in groups]

    def make_store() -> PagedKVStore:
        return PagedKVStore(
            groups,
            blocks(rig),
            LIMITS.block_size,
            lease=None,
            block_bytes=block_bytes,
            max_chunk_tokens=LIMITS.max_num_batched_tokens,
        )

    return seam.replay(
        seam.make_script(seed),
        lambda: executor,
        planner=planner,
        make_store=make_store,
        block_bytes=block_bytes,
        budget=TokenBudget(max_num_batched_tokens=16, max_num_seqs=6),
    )


@pytest.mark.parametrize("planner", PLANNERS.names())
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_same_decisions(rig: Rig, planner: str, seed: int) -> None:
    real = replay(rig, rig.executor, planner, seed)
    null = replay(rig, NullExecutor(vocab_size=256), planner, seed)
    cost = linear_cost(base_s=0.01, per_token_s=0.001)
    simulated = replay(rig, SimulatedExecutor(VirtualClock(), cost), planner, seed)
    assert real.log.first_difference(null.log) is None
    assert real.log.digest() == null.log.digest() == simulated.log.digest()
    assert real.scored == null.scored and len(real.scored) > 0
    assert {name: len(tokens) for name, tokens in real.tokens.items()} == {
        name: len(tokens) for name, tokens in null.tokens.items()
    }


def test_the_scripts_preempt(rig: Rig) -> None:
    counts = [replay(rig, NullExecutor(), "sarathi", seed).core.counters for seed in (1, 2, 3)]
    assert sum(each.preemptions for each in counts) > 0 and sum(each.prefix_hit_tokens for each in counts) > 0
