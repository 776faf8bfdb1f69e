# SPDX-License-Identifier: Apache-2.0
"""Keys and values that are packed a block at a time need a place until their block is full: a KV group of its own, the tail.

The tail has the layers of the group that it belongs to, in fp32, and a window of one token: a sequence keeps the block that its next token
goes to, and gives it back when the block is full and packed. Tables, copies on write and leases are then the store's as always::

    group 0 (kivi2)   | 7 | 2 | 9 | 4 )      all blocks; the last one is reserved and not packed yet
    group 1 (tail)    | x | x | x | 5 )      x: given back
"""

from __future__ import annotations

from dataclasses import replace

from ziggurat.programs.plan import AttentionStep, Limits, Plan, QKVStep, Step
from ziggurat.units import ceil_div


def with_tails(plan: Plan) -> Plan:
    """The Plan with a tail for every KV group, if its KV format packs whole blocks; else the Plan itself."""
    if not plan.kv_format.block_tokens:
        return plan
    groups = plan.program.kv_groups()
    assert all(group.window is None for group in groups), "packed blocks have no windows"
    tails = tuple(replace(group, index=len(groups) + group.index, window=1, is_tail=True) for group in groups)

    def change(step: Step) -> Step:
        if isinstance(step, QKVStep):
            return replace(step, group=tails[step.group].index)
        if isinstance(step, AttentionStep):
            return replace(step, tail_group=tails[step.group].index)
        return step

    program = replace(plan.program, groups=(*groups, *tails))
    return replace(plan, program=program, steps=tuple(map(change, plan.steps)))


def tail_blocks(limits: Limits) -> int:
    """Blocks of a tail with which no step ever waits for one: those that its tokens fill, and a begun one at both ends of every chunk."""
    return ceil_div(limits.max_num_batched_tokens, limits.block_size) + 2 * limits.max_num_seqs
