# SPDX-License-Identifier: Apache-2.0
"""Engines in tight corners: a pool of a given number of blocks, a given backend, whatever the budget would have given."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from ziggurat import kernels
from ziggurat.clock import WallClock
from ziggurat.engine.config import EngineConfig
from ziggurat.engine.engine import Engine
from ziggurat.engine.resources import Resources
from ziggurat.engine.sizing import open_model, size
from ziggurat.engine.weights import fill_weights
from ziggurat.kernels.ops import load_native
from ziggurat.memory.fit import sequence_blocks
from ziggurat.memory.machine import Machine
from ziggurat.programs.tails import tail_blocks

MAX_MODEL_LEN = 96
FASTEST = "torch" if load_native() is None else "native"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One way to run an engine. ``spare_blocks``: blocks beyond what one full-length sequence needs."""

    backend: str = "torch"
    threads: int = 1
    max_num_seqs: int = 8
    max_num_batched_tokens: int = 256
    block_size: int = 16
    spare_blocks: int = 100
    has_prefix_cache: bool = False
    planner: str = "sarathi"
    eviction: str = "lru"
    order: tuple[int, ...] = (0, 1, 2, 3, 4)
    gaps: tuple[int, ...] = (0, 0, 0, 0, 0)
    is_alone: bool = False
    is_repeated: bool = False
    quantization: str = "auto"
    swap_space: str | int = 0
    preemption_mode: str = "auto"
    kv_cache_dtype: str = "auto"


def load(folder: Path, setting: Setting) -> Engine:
    """The engine of that setting."""
    config = EngineConfig(
        model=str(folder),
        memory="64MiB",
        max_model_len=MAX_MODEL_LEN,
        block_size=setting.block_size,
        max_num_seqs=setting.max_num_seqs,
        max_num_batched_tokens=setting.max_num_batched_tokens,
        enable_prefix_caching=setting.has_prefix_cache,
        planner=setting.planner,
        eviction_policy=setting.eviction,
        quantization=setting.quantization,
        swap_space=setting.swap_space,
        preemption_mode=setting.preemption_mode,
        kv_cache_dtype=setting.kv_cache_dtype,
    )
    source = open_model(config)
    roomy = size(config, source, 64 << 20)
    groups, limits = roomy.plan.program.kv_groups(), roomy.plan.limits
    counts = [
        tail_blocks(limits) if group.is_tail else sequence_blocks(group, MAX_MODEL_LEN, limits) + setting.spare_blocks
        for group in groups
    ]
    pool_bytes = sum(count * roomy.plan.block_bytes(group) for count, group in zip(counts, groups, strict=True))
    tight = replace(roomy, num_blocks=tuple(counts), kv_pool_bytes=pool_bytes, metadata_bytes=0)
    ops = kernels.select(setting.backend, num_threads=setting.threads)
    baseline_bytes = Machine().process_memory().charged_bytes
    resources = Resources(tight, baseline_bytes, WallClock(), swap_bytes=config.swap_bytes)
    engine = Engine(config, source, resources, ops, WallClock())
    fill_weights(config, source, engine.resources, ops, None)
    return engine
