# SPDX-License-Identifier: Apache-2.0
"""Tables of cosines and sines, made once, in the arena that the Plan has for them."""

from __future__ import annotations

import torch
from torch import Tensor

from ziggurat.engine.weights import arena_view
from ziggurat.memory.arena import Arena
from ziggurat.programs.plan import Plan
from ziggurat.programs.rope import RopeSpec

_ROPE_SLICE_POSITIONS = 4096


def all_rope_tables(plan: Plan, arena: Arena) -> list[tuple[Tensor, Tensor]]:
    """The tables of every rotary embedding, one after another in the arena."""
    num_positions, offset, tables = plan.limits.max_model_len, 0, []
    for rope in plan.program.ropes:
        tables.append(rope_tables(rope, num_positions, arena, offset))
        offset += rope.table_bytes(num_positions)
    return tables


def rope_tables(rope: RopeSpec, num_positions: int, arena: Arena, offset: int = 0) -> tuple[Tensor, Tensor]:
    """Cosines and sines fp32 [num_positions, dim / 2], written into the arena from byte ``offset``. Angles are taken in fp64."""
    half_bytes = rope.table_bytes(num_positions) // 2
    cos, sin = (
        arena_view(arena, place, half_bytes, torch.float32).view(num_positions, rope.dim // 2)
        for place in (offset, offset + half_bytes)
    )
    frequencies = torch.tensor(rope.frequencies, dtype=torch.float64)
    for start in range(0, num_positions, _ROPE_SLICE_POSITIONS):
        end = min(start + _ROPE_SLICE_POSITIONS, num_positions)
        angles = torch.arange(start, end, dtype=torch.float64)[:, None] * frequencies
        cos[start:end] = angles.cos() * rope.attention_scaling
        sin[start:end] = angles.sin() * rope.attention_scaling
    return cos, sin
