# SPDX-License-Identifier: Apache-2.0
"""Blocks to the swap space and back: plain copies in RAM, in the order in which they were decided."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from ziggurat.clock import Clock
from ziggurat.engine.config import EngineConfig
from ziggurat.engine.resources import Resources
from ziggurat.errors import DoesNotFit, UnsupportedFeature
from ziggurat.kernels import KernelOps
from ziggurat.memory.arena import Arena
from ziggurat.memory.fit import Fit
from ziggurat.memory.swap import MoveOp, SwapSpace
from ziggurat.programs.plan import Plan
from ziggurat.scheduling.swapping import Swapper
from ziggurat.units import ceil_div, format_bytes

# Steps with fewer tokens say more about their fixed cost than about a token's.
_MIN_LEARNED_TOKENS = 32
_LEARNING_RATE = 0.1


def slot_bytes(plan: Plan) -> int:
    """Bytes of a slot: one block of every KV group, side by side."""
    return sum(plan.block_bytes(group) for group in plan.program.kv_groups())


def swap_slots(plan: Plan, num_bytes: int) -> int:
    """Slots that fit, or 0 where swapping is not built.

    Raises:
        UnsupportedFeature: a model with windows: blocks that have left a window are not there to copy; or KV that is packed in blocks.
        DoesNotFit: not one request of the longest kind fits.
    """
    if not num_bytes:
        return 0
    if plan.kv_format.block_tokens:
        raise UnsupportedFeature(
            f"a swap space for KV in {plan.kv_format.name} is not built: leave --swap-space out (preempted sequences are computed again), "
            "or use another --kv-cache-dtype",
            feature="swap-space",
        )
    if any(group.window is not None for group in plan.program.kv_groups()):
        raise UnsupportedFeature(
            "a swap space for models with sliding windows is not built: leave --swap-space out, preempted sequences are computed again",
            feature="swap-space",
        )
    count, longest = num_bytes // slot_bytes(plan), ceil_div(plan.limits.max_model_len, plan.limits.block_size)
    if count < longest:
        raise DoesNotFit(
            f"a swap space of {format_bytes(num_bytes)} does not hold one request of {plan.limits.max_model_len} tokens, which takes "
            f"{format_bytes(longest * slot_bytes(plan))}: raise --swap-space to that, or lower --max-model-len",
            needed_bytes=longest * slot_bytes(plan),
            available_bytes=num_bytes,
        )
    return count


def make_swap_space(plan: Plan, num_bytes: int) -> SwapSpace | None:
    """The swap space of that size; None without one."""
    count = swap_slots(plan, num_bytes)
    return SwapSpace(count, len(plan.program.kv_groups()), plan.limits.block_size) if count else None


def make_resources(config: EngineConfig, fit: Fit, baseline_bytes: int, clock: Clock) -> Resources:
    """Ledger and arenas of an engine, the swap space's too.

    Raises:
        UnsupportedFeature, DoesNotFit: see `swap_slots`.
    """
    swap_slots(fit.plan, config.swap_bytes)
    return Resources(fit, baseline_bytes, clock, swap_bytes=config.swap_bytes)


class BlockMover:
    """Between pools and a swap arena.

    Args:
        pools: uint8 views of the KV pools, one per group.
        ops: copies.
    """

    def __init__(self, plan: Plan, pools: Sequence[Tensor], swap: Arena, ops: KernelOps) -> None:
        self._pools, self._slot_bytes, self._block_size = pools, slot_bytes(plan), plan.limits.block_size
        self._sizes = [plan.block_bytes(group) for group in plan.program.kv_groups()]
        offsets = [sum(self._sizes[:group]) for group in range(len(self._sizes))]
        flat = torch.frombuffer(swap.buffer, dtype=torch.uint8)
        self._slots = [flat[offset:] for offset in offsets]
        self._ops = ops
        self.num_moved_bytes = 0
        self.moved_s = 0.0

    def carry_out(self, moves: Sequence[MoveOp]) -> None:
        """Copy, as many at a time as do not depend on each other."""
        if not moves:
            return
        started_s = time.perf_counter()
        for batch in _independent(moves):
            group, is_out = batch[0].group, batch[0].direction == "out"
            size = self._sizes[group]
            pairs = torch.tensor([(move.block, move.slot) if is_out else (move.slot, move.block) for move in batch])
            target, source = (self._slots[group], self._pools[group])[:: 1 if is_out else -1]
            strides = (size, self._slot_bytes)[:: 1 if is_out else -1]
            self._ops.copy_blocks(target, pairs, block_bytes=size, source=source, strides=(strides[0], strides[1]))
            self.num_moved_bytes += size * len(batch)
        self.moved_s += time.perf_counter() - started_s

    @property
    def seconds_per_token(self) -> float:
        """Of a token's KV, measured over all moves so far; 0 before the first."""
        per_byte = self.moved_s / self.num_moved_bytes if self.num_moved_bytes else 0.0
        return per_byte * self._slot_bytes / self._block_size


def _independent(moves: Sequence[MoveOp]) -> list[list[MoveOp]]:
    """Runs of one group and direction in which no place is written twice; they follow each other in the order of the moves."""
    runs: list[list[MoveOp]] = []
    places: set[int] = set()
    by_group = sorted(moves, key=lambda move: move.group)  # groups never meet; within one the order stays
    for move in by_group:
        place = move.slot if move.direction == "out" else move.block
        last = runs[-1][-1] if runs else None
        if last is None or (last.group, last.direction) != (move.group, move.direction) or place in places:
            runs.append([])
            places.clear()
        runs[-1].append(move)
        places.add(place)
    return runs


def learn_costs(swapper: Swapper | None, mover: BlockMover | None, num_tokens: int, elapsed_s: float) -> None:
    """What preemption would cost here: steps with many tokens say what a token of a prompt takes, moves what a copy does."""
    if swapper is None or mover is None or num_tokens < _MIN_LEARNED_TOKENS:
        return
    costs, sample_s = swapper.costs, elapsed_s / num_tokens
    costs.compute_s = costs.compute_s + _LEARNING_RATE * (sample_s - costs.compute_s) if costs.compute_s else sample_s
    costs.copy_s = mover.seconds_per_token
