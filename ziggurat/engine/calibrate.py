# SPDX-License-Identifier: Apache-2.0
"""Times steps of a loaded engine, at several sizes, beside running texts; what follows from the times is decided elsewhere."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ziggurat.scheduling.calibration import Calibration, StepSample, calibrate
from ziggurat.scheduling.core import EngineCore
from ziggurat.scheduling.planners import resolve
from ziggurat.scheduling.protocol import TokenBudget
from ziggurat.scheduling.sampling import SamplingParams
from ziggurat.scheduling.sequence import Request

if TYPE_CHECKING:
    from ziggurat.engine.engine import Engine

_LOG = logging.getLogger(__name__)
ROW_TILE = 16
"""Rows that the kernels compute together."""
CONTEXT_TOKENS = 256
NUM_DECODES = 8
NUM_REPEATS = 3


def step_sizes(max_tokens: int) -> list[int]:
    """Powers of two from one row tile up to the largest step, and that."""
    sizes = [size for size in (ROW_TILE << power for power in range(16)) if size < max_tokens]
    return [*sizes, max_tokens]


def calibrate_engine(engine: Engine, *, tbt_target_s: float | None = None) -> Calibration:
    """Measure, decide, and set the engine's budget. The engine must be idle; nothing of it is left in the KV pool.

    Args:
        tbt_target_s: the longest step; by default what the engine's configuration says.

    Raises:
        ConfigError: see `ziggurat.scheduling.calibration.calibrate`.
    """
    limits, target_ms = engine.fit.plan.limits, engine.config.tbt_target_ms
    if tbt_target_s is None and target_ms is not None:
        tbt_target_s = target_ms / 1000
    found = calibrate(
        measure_steps(engine, step_sizes(limits.max_num_batched_tokens)),
        max_num_seqs=limits.max_num_seqs,
        row_tile=ROW_TILE,
        tbt_target_s=tbt_target_s,
        is_max_num_seqs_fixed=engine.config.max_num_seqs is not None,
    )
    engine.core.budget = TokenBudget(
        max_num_batched_tokens=found.max_num_batched_tokens, max_num_seqs=found.max_num_seqs
    )
    message = "calibrated: %d tokens and %d sequences per step (%.1f ms; knee at %.0f tokens)"
    budget = engine.core.budget
    _LOG.info(message, budget.max_num_batched_tokens, budget.max_num_seqs, 1000 * found.step_s, found.knee_tokens)
    return found


def measure_steps(engine: Engine, sizes: Sequence[int], *, num_repeats: int = NUM_REPEATS) -> list[StepSample]:
    """The median seconds of a step per size: some texts decode behind a context, the rest of the step is a chunk of a prompt.

    Sizes for which the context limit or the pool has no room are left out, but never all: two remain.
    """
    assert not engine.has_work, "an engine is calibrated before it serves"
    limits = engine.fit.plan.limits
    room = limits.max_model_len - 2
    sizes = [size for index, size in enumerate(sizes) if sum(sizes[: index + 1]) <= room or index < 2]
    context = max(1, min(CONTEXT_TOKENS, room - sum(sizes) - len(sizes)))
    num_decodes = max(0, min(NUM_DECODES, limits.max_num_seqs - 1, engine.fit.largest_batch - 1, sizes[0] - 1))
    times_s: dict[int, list[float]] = {size: [] for size in sizes}
    for _ in range(num_repeats):
        for size, seconds in _measure_once(engine, sizes, context, num_decodes):
            times_s[size].append(seconds)
        # The next repeat must not find in the cache what this one computed.
        engine.store.drop_cache()
    return [StepSample(num_tokens=size, seconds=statistics.median(each)) for size, each in times_s.items()]


def _measure_once(engine: Engine, sizes: Sequence[int], context: int, num_decodes: int) -> list[tuple[int, float]]:
    # A core of its own over the same store and executor: the engine's counters and ids stay as they are.
    limits = engine.fit.plan.limits
    whole = TokenBudget(max_num_batched_tokens=limits.max_num_batched_tokens, max_num_seqs=limits.max_num_seqs)
    core = EngineCore(
        engine.store,
        resolve("sarathi"),
        engine.executor,
        whole,
        max_model_len=limits.max_model_len,
        block_bytes=engine.core.block_bytes,
    )
    for index in range(num_decodes):
        core.add(_request(engine, f"decode-{index}", context, limits.max_model_len - context), 0.0)
    while core.has_work and any(row["num_output_tokens"] == 0 for row in core.snapshot()["sequences"]):
        core.step(0.0)
    core.add(_request(engine, "prompt", min(limits.max_model_len - 1, context + sum(sizes) + 1), 1), 0.0)
    core.budget = TokenBudget(max_num_batched_tokens=context + num_decodes, max_num_seqs=limits.max_num_seqs)
    if core.budget.max_num_batched_tokens > limits.max_num_batched_tokens:
        core.budget = whole
    core.step(0.0)
    measured = []
    for size in sizes:
        core.budget = TokenBudget(max_num_batched_tokens=size, max_num_seqs=limits.max_num_seqs)
        start_s = engine.now()
        output = core.step(0.0)
        if output.error is not None:
            raise output.error
        measured.append((size, engine.now() - start_s))
    for index in range(num_decodes):
        core.abort(f"decode-{index}")
    core.abort("prompt")
    return measured


def _request(engine: Engine, name: str, num_prompt_tokens: int, max_tokens: int) -> Request:
    # Each has a salt of its own, so that no prefix is shared and every token is computed.
    vocab_size = engine.model.vocab_size
    prompt_ids = [(31 * index + 7) % vocab_size for index in range(num_prompt_tokens)]
    params = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)
    return Request(request_id=name, prompt_ids=prompt_ids, params=params, cache_salt=f"calibration-{name}")
