# SPDX-License-Identifier: Apache-2.0
"""The operations a Program is made of: plain, unfused data.

Every value is a matrix of rows; its first dimension is symbolic: `TOKENS` (all tokens of the ragged batch), `ROUTED` (each token
once per expert that it was sent to: row ``t * top_k + j``) or `ROWS` (the rows whose logits are wanted). Weights are named as in
the Hugging Face checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass

TOKENS = "tokens"
ROWS = "rows"
ROUTED = "routed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Op:
    """Base of all operations. ``inputs`` and ``output`` name values of the Program."""

    inputs: tuple[str, ...]
    output: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Embed(Op):
    """Rows of an embedding matrix ``weight`` [vocab, hidden] picked by token ids (the batch's own, no input value)."""

    weight: str
    scale: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Norm(Op):
    """Root-mean-square norm over spans of ``span`` values (the whole row, or one head), times ``weight`` [span] (+ offset)."""

    weight: str
    eps: float
    span: int
    weight_offset: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear(Op):
    """``x @ weight.T (+ bias)``; ``weight`` is [out, in]."""

    weight: str
    bias: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rope(Op):
    """Rotary position embedding on each head of the row (Hugging Face's rotate-half convention), by the Program's ``ropes[rope]``."""

    num_heads: int
    head_dim: int
    rope: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class KVAppend(Op):
    """Writes this step's keys and values (inputs k, v) of one layer into its KV group. Output: nothing, by name ``''``."""

    layer: int
    group: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention(Op):
    """Causal attention with grouped queries.

    Inputs are (q,) when serving, where keys and values come from the KV group, and (q, k, v) in ``mode="train"``, where they are
    contiguous functional values. Key j is visible to query i iff j <= i and, with a window, i - j < window. With a soft cap c, scores are
    ``c * tanh(score / c)`` before the softmax.
    """

    layer: int
    group: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    window: int | None = None
    softcap: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GatedActivation(Op):
    """``act(gate) * up`` for inputs (gate, up); ``function`` is ``silu`` or ``gelu_tanh``."""

    function: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Add(Op):
    """Sum of two values of one shape."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectRows(Op):
    """The rows whose logits are wanted: [tokens, n] -> [rows, n]. In training all rows are wanted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftCap(Op):
    """``cap * tanh(x / cap)``."""

    cap: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Route(Op):
    """From router logits [tokens, experts]: the ``top_k`` experts of each token by softmax probability (ties: lower number first).

    The output [tokens, 2 * top_k] holds the expert numbers and then their probabilities, divided by their sum if ``normalize``.
    """

    top_k: int
    normalize: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertLinear(Op):
    """Each routed row times its own expert's matrix. Inputs (x, routing): x has tokens or routed rows, the output has routed rows.

    Attributes:
        weights: one [out, in] matrix per expert, in order.
    """

    weights: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Combine(Op):
    """Inputs (routed, routing): for each token the sum over its experts of probability times row, in the order of routing."""
