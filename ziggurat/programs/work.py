# SPDX-License-Identifier: Apache-2.0
"""How much arithmetic a token of a prompt is: the part that is the same everywhere, and the part that grows with its position."""

from __future__ import annotations

from math import prod

from ziggurat.programs.ops import Attention, ExpertLinear, Linear
from ziggurat.programs.program import Program


def prompt_token_flops(program: Program, position: int) -> int:
    """Multiplications and additions of one prompt token at ``position``: layers only, because a prompt's logits are not computed.

    A matrix [n, m] is 2nm, a token of a mixture visits ``top_k`` experts, attention is 4 per head, dimension and visible token.
    """
    total = 0
    for layer in program.layers:
        for op in layer:
            if isinstance(op, Linear):
                total += 2 * prod(program.weights[op.weight].shape)
            elif isinstance(op, ExpertLinear):
                total += 2 * program.top_k * prod(program.weights[op.weights[0]].shape)
            elif isinstance(op, Attention):
                visible = position + 1 if op.window is None else min(op.window, position + 1)
                total += 4 * op.num_heads * op.head_dim * visible
    return total
