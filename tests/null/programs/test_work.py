# SPDX-License-Identifier: Apache-2.0
"""Arithmetic of prompt tokens of published models, from the numbers of their configurations."""

from __future__ import annotations

from tests.null.programs.test_architectures import GEMMA2, PUBLISHED
from tests.null.programs.test_lowering import BASE
from ziggurat.programs.architectures import build_program
from ziggurat.programs.ops import Attention
from ziggurat.programs.work import prompt_token_flops


def test_a_mixture_visits_two_experts_and_attention_grows_with_the_position() -> None:
    """Mixtral 8x7B: 12.9e9 active parameters with both embeddings (2 x 32000 x 4096), norms aside; 4 x 32 heads x 128 per visible token."""
    program = build_program(PUBLISHED[0][1])
    layer = 4096 * 4096 * 2 + 2 * 4096 * 1024 + 2 * 3 * 4096 * 14336 + 8 * 4096
    attention = 32 * 4 * 32 * 128
    assert prompt_token_flops(program, 0) == 2 * 32 * layer + attention
    assert prompt_token_flops(program, 999) - prompt_token_flops(program, 99) == 900 * attention
    assert abs(2 * 12.9e9 - 4 * 32000 * 4096 - prompt_token_flops(program, 0)) < 0.01 * 2 * 12.9e9


def test_a_window_bounds_it() -> None:
    program = build_program({**BASE, **GEMMA2, "num_hidden_layers": 2})
    grown = [prompt_token_flops(program, position) for position in (0, 31, 32, 100)]
    heads = BASE["num_attention_heads"] * next(op.head_dim for op in program.ops() if isinstance(op, Attention))
    assert grown[1] - grown[0] == 31 * 2 * 4 * heads, "both layers see all"
    assert grown[3] - grown[2] == 68 * 4 * heads, "one layer sees its window only"
