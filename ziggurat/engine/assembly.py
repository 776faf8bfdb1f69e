# SPDX-License-Identifier: Apache-2.0
"""The parts of an engine from its settings."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from ziggurat.engine.config import EngineConfig
from ziggurat.engine.eviction import eviction_of
from ziggurat.engine.executor import PlanExecutor
from ziggurat.engine.fingerprint import fingerprint
from ziggurat.engine.generation import GenerationDefaults
from ziggurat.engine.interface import ModelInfo
from ziggurat.engine.resources import Resources
from ziggurat.engine.sessions import Sessions
from ziggurat.engine.sizing import ModelSource
from ziggurat.engine.swapping import make_swap_space
from ziggurat.memory.fit import Fit
from ziggurat.memory.paged import PagedKVStore
from ziggurat.scheduling.core import EngineCore
from ziggurat.scheduling.fairness import Clients
from ziggurat.scheduling.order import ORDERS
from ziggurat.scheduling.planners import resolve as resolve_planner
from ziggurat.scheduling.preemption import PREEMPTION_MODES
from ziggurat.scheduling.protocol import TokenBudget

if TYPE_CHECKING:
    from ziggurat.engine.engine import Engine


def model_info(config: EngineConfig, source: ModelSource, fit: Fit, defaults: GenerationDefaults) -> ModelInfo:
    """Facts about a loaded model."""
    return ModelInfo(
        name=config.served_model_name or config.model,
        path=str(source.folder),
        architecture=source.program.architecture,
        vocab_size=source.program.vocab_size,
        max_model_len=fit.plan.limits.max_model_len,
        num_parameters=source.program.num_parameters(),
        weight_format=source.formats.weight.name,
        kv_format=source.formats.kv.name,
        eos_ids=defaults.eos_ids,
        sampling_defaults=defaults.sampling,
    )


def make_store(config: EngineConfig, resources: Resources) -> PagedKVStore:
    """The KV store over the pool's lease."""
    plan = resources.fit.plan
    groups = plan.program.kv_groups()
    return PagedKVStore(
        groups,
        resources.fit.num_blocks,
        plan.limits.block_size,
        lease=resources.kv_lease,
        block_bytes=[plan.block_bytes(group) for group in groups],
        enable_prefix_caching=config.enable_prefix_caching,
        max_chunk_tokens=plan.limits.max_num_batched_tokens,
        eviction=eviction_of(config.eviction_policy, plan.program),
    )


def make_core(
    config: EngineConfig, fit: Fit, model: ModelInfo, store: PagedKVStore, executor: PlanExecutor
) -> EngineCore:
    """The core, with the policies that were asked for."""
    limits = fit.plan.limits
    return EngineCore(
        store,
        resolve_planner(config.planner),
        executor,
        TokenBudget(max_num_batched_tokens=limits.max_num_batched_tokens, max_num_seqs=limits.max_num_seqs),
        max_model_len=limits.max_model_len,
        block_bytes=[fit.plan.block_bytes(group) for group in fit.plan.program.kv_groups()],
        max_queued_requests=config.max_queued_requests,
        eos_ids=model.eos_ids,
        seed=config.seed,
        order=ORDERS.get(config.scheduling_policy),
        clients=Clients(config.client_weights),
        swap=make_swap_space(fit.plan, config.swap_bytes),
        preemption_mode=PREEMPTION_MODES.get(config.preemption_mode),
    )


def make_sessions(engine: Engine, source: ModelSource) -> Sessions:
    """The sessions of an engine; fingerprints are taken when something is saved or restored."""
    return Sessions(
        engine.fit.plan,
        engine.store,
        engine.resources.pools,
        model=cache(lambda: fingerprint(source.folder)),
        adapter=engine.adapters.fingerprint,
        set_aside=engine._set_aside,
    )
