# SPDX-License-Identifier: Apache-2.0
"""Initial weights: small random ones, or ones in which copying by content is already sketched.

The sketch ("retrieval") is the circuit that training on look-ups finds by itself, but late: layer 0 tells each position
which tokens stood one, two and three places before it, and layers 1 and 2 look for an earlier position whose
predecessors equal the tokens just read, and copy what stands there. Training moves every weight afterwards; only the
start is chosen. In the manner of mimetic initialisation (Trockman and Kolter 2023) applied to induction heads (Olsson et al. 2022).

Residual stream of width H: [constant 1 | token code C | before-1 W | before-2 W | before-3 W].
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ziggurat.errors import ConfigError
from ziggurat.programs import ops
from ziggurat.programs.program import Program

_EMBEDDING_STD = 0.05
_CONSTANT = 0.2
_NOISE_STD = 0.02


def random_weights(program: Program, seed: int) -> dict[str, Tensor]:
    """Normal weights of deviation 0.02, scaled down by depth where they write to the residual stream; norms are ones."""
    generator = torch.Generator().manual_seed(seed)
    depth_scale = (2 * len(program.layers)) ** -0.5
    weights = {}
    for name, spec in program.weights.items():
        if spec.tied_to is not None:
            continue
        if spec.role == "vector":
            weights[name] = torch.zeros(spec.shape) if name.endswith("bias") else torch.ones(spec.shape)
            continue
        writes_residual = name.endswith(("o_proj.weight", "down_proj.weight", ".w2.weight"))
        std = _NOISE_STD * (depth_scale if writes_residual else 1.0)
        weights[name] = torch.randn(spec.shape, generator=generator) * std
    return weights


def _orthonormal_rows(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """[rows, columns] with orthonormal rows (rows <= columns)."""
    q: Tensor = torch.linalg.qr(torch.randn(columns, rows, generator=generator))[0]
    return q.T.contiguous()


def retrieval_weights(program: Program, seed: int) -> dict[str, Tensor]:
    """Random weights plus the sketched circuit.

    Raises:
        ConfigError: the Program is too small for it (3 layers, width 256, head size 64, 4 query heads over 2 KV heads).
    """
    attention = next((op for op in program.ops() if isinstance(op, ops.Attention)), None)
    if attention is None or len(program.layers) < 3 or program.hidden_size != 256 or attention.head_dim != 64:
        raise ConfigError(
            "initial = 'retrieval' needs at least 3 layers, hidden size 256 and head size 64; use initial = 'random'"
        )
    if (attention.num_heads, attention.num_kv_heads) != (4, 2):
        raise ConfigError("initial = 'retrieval' needs 4 query heads over 2 KV heads; use initial = 'random'")
    generator = torch.Generator().manual_seed(seed + 1)
    weights = random_weights(program, seed)
    width = 48  # of each before-n span
    code = slice(1, 256 - 3 * width)
    spans = [slice(256 - 3 * width + n * width, 256 - 3 * width + (n + 1) * width) for n in range(3)]
    embedding = weights["model.embed_tokens.weight"]
    embedding.mul_(0.1)
    embedding[:, code] = torch.randn(embedding.shape[0], code.stop - code.start, generator=generator) * _EMBEDDING_STD
    embedding[:, 0] = _CONSTANT
    gather = _orthonormal_rows(width, code.stop - code.start, generator)
    _sketch_previous(weights, program, code, spans, gather)
    for layer in (1, 2):
        _sketch_match(weights, program, layer, code, spans, gather, generator)
    return weights


def _sketch_previous(
    weights: dict[str, Tensor], program: Program, code: slice, spans: list[slice], gather: Tensor
) -> None:
    """Layer 0: heads 0, 1, 2 attend one, two and three places back and write that token's code into their span.

    The constant coordinate feeds key a and query a * exp(-i theta d) in the fast frequencies, so that the score after
    the rotation is a^2 * sum cos(theta * (distance - d)): a peak at distance d wherever the two stand.
    """
    prefix = "model.layers.0.self_attn"
    frequencies = [(f, theta) for f, theta in enumerate(program.rope.inverse_frequencies()) if theta > 1e-3]
    norm = math.sqrt(_CONSTANT**2 + (code.stop - code.start) * _EMBEDDING_STD**2) / math.sqrt(program.hidden_size)
    strength = 7.0 / (_CONSTANT / norm)
    q, k = weights[f"{prefix}.q_proj.weight"], weights[f"{prefix}.k_proj.weight"]
    v, o = weights[f"{prefix}.v_proj.weight"], weights[f"{prefix}.o_proj.weight"]
    width = spans[0].stop - spans[0].start
    for head, distance in ((0, 1), (1, 2), (2, 3)):
        for f, theta in frequencies:
            q[head * 64 + f, 0] += strength * math.cos(theta * distance)
            q[head * 64 + f + 32, 0] -= strength * math.sin(theta * distance)
        for i in range(width):
            o[spans[head].start + i, head * 64 + i] += norm
    for kv_head in (0, 1):
        for f, _ in frequencies:
            k[kv_head * 64 + f, 0] += strength
        v[kv_head * 64 : kv_head * 64 + width, code] += gather


def _sketch_match(
    weights: dict[str, Tensor],
    program: Program,
    layer: int,
    code: slice,
    spans: list[slice],
    gather: Tensor,
    generator: torch.Generator,
) -> None:
    """Heads 0 and 1 match (own, before-1, before-2) here against (before-1, before-2, before-3) there, and copy the token there.

    Only the slowest frequencies carry the match, so that it hardly depends on distance.
    """
    prefix = f"model.layers.{layer}.self_attn"
    q, k = weights[f"{prefix}.q_proj.weight"], weights[f"{prefix}.k_proj.weight"]
    v, o = weights[f"{prefix}.v_proj.weight"], weights[f"{prefix}.o_proj.weight"]
    slow = [f for f, theta in enumerate(program.rope.inverse_frequencies()) if theta < 3e-4]
    rows = torch.tensor(slow + [f + 32 for f in slow])
    width = spans[0].stop - spans[0].start
    for strength, here, there in ((2.0, None, spans[0]), (1.7, spans[0], spans[1]), (1.2, spans[1], spans[2])):
        pick = strength * _orthonormal_rows(len(rows), width, generator)
        for head in (0, 1):
            if here is None:
                q[head * 64 + rows, code] += pick @ gather
            else:
                q[head * 64 + rows, here] += pick
        k[rows, there] += pick
    copy = _orthonormal_rows(64, code.stop - code.start, generator)
    v[:64, code] += copy
    for head in (0, 1):
        o[code, head * 64 : (head + 1) * 64] += 0.05 * copy.T


INITIALISERS = {"random": random_weights, "retrieval": retrieval_weights}
