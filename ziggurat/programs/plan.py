# SPDX-License-Identifier: Apache-2.0
"""The lowered form of a Program: fused steps, packed weights, and buffers with a place and a size.

Executors carry a Plan out, ``ziggurat plan`` prints its sizes, the ledger reserves them and the simulator prices its steps: they
read one object, so they cannot disagree.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ziggurat.programs.formats import FP32, FormatSpec
from ziggurat.programs.program import KVGroup, Program


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Sizes that the plan is built for.

    Attributes:
        max_model_len: tokens per sequence, prompt and output together.
        max_num_seqs: sequences in one step, and so rows of logits.
        max_num_batched_tokens: tokens in one step.
        block_size: tokens per KV block.
    """

    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    block_size: int = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedWeight:
    """One packed weight: several checkpoint tensors whose rows follow each other.

    Attributes:
        name: the plan's own name.
        sources: (checkpoint name, rows) in order; matrices are [rows, in_features].
        out_features, in_features: of the fused matrix; a vector has in_features 1.
        layout: ``panels`` (`PANEL_WIDTH` rows interleaved, in the storage format, quantized or not) or ``vector`` (fp32).
        offset, num_bytes: place in the weight arena.
    """

    name: str
    sources: tuple[tuple[str, int], ...]
    out_features: int
    in_features: int
    layout: Literal["panels", "vector"]
    format: FormatSpec
    offset: int
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Buffer:
    """An activation buffer [leading, width] of fp32 in the workspace arena."""

    name: str
    leading: str
    max_rows: int
    width: int
    offset: int
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Base of the plan's steps; string fields name buffers or packed weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedStep(Step):
    """out = rows of the embedding picked by the batch's token ids, times scale."""

    weight: str
    out: str
    scale: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NormStep(Step):
    """out = rms_norm(x) * (weight + weight_offset), whole rows."""

    x: str
    weight: str
    out: str
    eps: float
    weight_offset: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearStep(Step):
    """out = x @ W.T (+ bias), or out += .. when ``accumulate`` (a fused residual addition).

    ``scratch`` is the buffer in which rows of x are quantized where the weight is; None elsewhere.
    """

    x: str
    weight: str
    bias: str | None
    out: str
    accumulate: bool
    scratch: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class QKVStep(Step):
    """On fused rows [q heads | k heads | v heads]: norm per head (optional), rotate q and k in place, write k and v to the KV group.

    ``rope`` is the index of the Program's rotary embedding.
    """

    qkv: str
    layer: int
    group: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope: int
    q_norm: str | None
    k_norm: str | None
    eps: float
    weight_offset: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionStep(Step):
    """out [tokens, heads * head_dim] = causal attention of the q part of ``qkv`` over the layer's KV.

    With a ``tail_group`` the blocks that became full are packed first, and the rest is read from the tail.
    """

    qkv: str
    out: str
    layer: int
    group: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    window: int | None
    softcap: float | None
    tail_group: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationStep(Step):
    """out [.., n] = act(first half) * second half of fused rows [gate | up], token or routed rows."""

    gate_up: str
    out: str
    function: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AddStep(Step):
    """x += delta."""

    x: str
    delta: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftCapStep(Step):
    """x = cap * tanh(x / cap)."""

    x: str
    cap: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteStep(Step):
    """out [tokens, 2 * top_k] = chosen experts and their probabilities, from router logits [tokens, experts]."""

    logits: str
    out: str
    top_k: int
    normalize: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupedLinearStep(Step):
    """out [routed, n] = each routed row times its own expert's matrix.

    The experts' rows follow each other in ``weight``: expert e has panels [e * P, (e + 1) * P) with P = out_features / num_experts / 16.
    Row r of the output reads row r of x if ``is_routed``, else row r // top_k.
    """

    x: str
    routing: str
    weight: str
    out: str
    num_experts: int
    top_k: int
    is_routed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CombineStep(Step):
    """out [tokens, n] = sum over j of probability j times routed row t * top_k + j, in order of j; out += .. when ``accumulate``."""

    x: str
    routing: str
    out: str
    top_k: int
    accumulate: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectStep(Step):
    """out [rows, n] = the rows of x whose logits are wanted."""

    x: str
    out: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSpan:
    """One layer: its steps ``[first_step, end_step)``, and the bytes of its weights, whole pages.

    Attributes:
        offset: in the weight arena; of a layer that is streamed, where it is while it computes, in a place that it shares.
        is_streamed: its bytes are read anew in every step.
    """

    first_step: int
    end_step: int
    offset: int
    num_bytes: int
    is_streamed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What one engine executes and how many bytes it takes.

    Attributes:
        steps: in execution order.
        weights: packed weights by name; ``weight_bytes`` is the arena that holds them.
        layer_spans: the layers in order.
        buffers: activations by name; ``workspace_bytes`` is the arena they share.
        kv_format: storage format of keys and values.
        table_bytes: rotary tables.
        sampler_bytes: transient of sampling one row at a time.
        logits: name of the buffer with the result.
    """

    program: Program
    limits: Limits
    steps: tuple[Step, ...]
    weights: dict[str, PackedWeight]
    weight_bytes: int
    layer_spans: tuple[LayerSpan, ...]
    buffers: dict[str, Buffer]
    workspace_bytes: int
    kv_format: FormatSpec
    table_bytes: int
    sampler_bytes: int
    logits: str

    @property
    def streamed_layers(self) -> tuple[int, ...]:
        """Numbers of the layers that are read anew in every step (`programs.streaming`)."""
        return tuple(number for number, span in enumerate(self.layer_spans) if span.is_streamed)

    def kv_bytes_per_token(self, group: KVGroup | None = None) -> int:
        """Bytes that one token takes in one KV group, or in all of them but tails, which hold few."""
        if group is not None:
            return (FP32 if group.is_tail else self.kv_format).num_bytes((group.values_per_token(),))
        return sum(self.kv_bytes_per_token(each) for each in self.program.kv_groups() if not each.is_tail)

    def block_bytes(self, group: KVGroup) -> int:
        """Bytes of one KV block of a group: all its layers, keys and values, ``block_size`` tokens."""
        return self.kv_bytes_per_token(group) * self.limits.block_size

    def fixed_bytes(self) -> int:
        """Everything but the KV pool."""
        return self.weight_bytes + self.workspace_bytes + self.table_bytes + self.sampler_bytes
