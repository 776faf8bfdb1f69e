# SPDX-License-Identifier: Apache-2.0
"""What the engine tells the prefix cache about leaving: the policy that was asked for, and what a block of this model costs."""

from __future__ import annotations

from functools import partial

from ziggurat.memory.block_cache import Eviction
from ziggurat.memory.eviction import EVICTION_POLICIES
from ziggurat.programs.program import Program
from ziggurat.programs.work import prompt_token_flops


def eviction_of(policy: str, program: Program) -> Eviction:
    """Blocks of one group have one size, so the arithmetic of a block's tokens is already per byte.

    Raises:
        ConfigError: no such policy.
    """
    return Eviction(
        new_policy=EVICTION_POLICIES.get(policy),
        recompute_cost=partial(prompt_token_flops, program),
    )
