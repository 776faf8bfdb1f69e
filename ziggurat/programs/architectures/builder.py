# SPDX-License-Identifier: Apache-2.0
"""Building blocks of decoder-only transformers: what the architecture functions put together.

A `Variant` says in which ways a family departs from Llama; `decoder` turns a checked configuration and a variant into a Program.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ziggurat.errors import ModelError
from ziggurat.programs import ops
from ziggurat.programs.config import DecoderConfig, RawConfig, positive_int
from ziggurat.programs.ops import ROUTED, ROWS, TOKENS, Op
from ziggurat.programs.program import KVGroup, Mode, Program, ValueSpec, WeightSpec
from ziggurat.programs.rope import RopeSpec


@dataclass(slots=True)
class Builder:
    """Collects operations, values and weights while an architecture function runs."""

    config: DecoderConfig
    variant: Variant
    mode: Mode
    groups: tuple[KVGroup, ...]
    ops: list[Op] = field(default_factory=list)
    values: dict[str, ValueSpec] = field(default_factory=dict)
    weights: dict[str, WeightSpec] = field(default_factory=dict)

    def value(self, name: str, width: int, leading: str = TOKENS) -> str:
        """Declares a value."""
        self.values[name] = ValueSpec(width=width, leading=leading)
        return name

    def vector(self, name: str, size: int) -> str:
        """Declares a norm's weight or a bias."""
        self.weights[name] = WeightSpec(shape=(size,), role="vector")
        return name

    def matrix(self, name: str, rows: int, columns: int) -> str:
        """Declares a matrix [rows, columns]."""
        self.weights[name] = WeightSpec(shape=(rows, columns), role="matrix")
        return name

    def norm(self, x: str, weight: str, out: str, span: int | None = None) -> str:
        """A norm of whole rows, or of spans of them."""
        spec = self.values[x]
        span = spec.width if span is None else span
        op = ops.Norm(
            inputs=(x,),
            output=self.value(out, spec.width, spec.leading),
            weight=self.vector(weight, span),
            eps=self.config.rms_norm_eps,
            span=span,
            weight_offset=self.variant.norm_offset,
        )
        self.ops.append(op)
        return out

    def linear(self, x: str, name: str, out: str, width: int, *, bias: bool = False) -> str:
        """``name.weight`` [width, width of x], with ``name.bias`` if asked."""
        spec = self.values[x]
        op = ops.Linear(
            inputs=(x,),
            output=self.value(out, width, spec.leading),
            weight=self.matrix(f"{name}.weight", width, spec.width),
            bias=self.vector(f"{name}.bias", width) if bias else None,
        )
        self.ops.append(op)
        return out

    def add(self, a: str, b: str, out: str) -> str:
        """Sum of two values."""
        self.ops.append(ops.Add(inputs=(a, b), output=self.value(out, self.values[a].width)))
        return out

    def rope(self, x: str, out: str, num_heads: int, rope: int) -> str:
        """Rotation of each head."""
        width = self.values[x].width
        self.ops.append(
            ops.Rope(
                inputs=(x,),
                output=self.value(out, width),
                num_heads=num_heads,
                head_dim=self.config.head_dim,
                rope=rope,
            )
        )
        return out

    def activation(self, gate: str, up: str, out: str) -> str:
        """``act(gate) * up``."""
        spec = self.values[gate]
        function = "silu" if self.config.hidden_act == "silu" else "gelu_tanh"
        self.ops.append(
            ops.GatedActivation(inputs=(gate, up), output=self.value(out, spec.width, spec.leading), function=function)
        )
        return out

    def group_of(self, layer: int) -> KVGroup:
        """The KV group of a layer."""
        return next(group for group in self.groups if layer in group.layers)


FeedForward = Callable[[Builder, int, str], str]
"""(builder, layer, input value) -> output value."""


def dense_feed_forward(b: Builder, i: int, x: str) -> str:
    """Gate, up, activation, down."""
    c, prefix, name, bias = b.config, f"model.layers.{i}.mlp", f"layer{i}", b.variant.mlp_bias
    gate = b.linear(x, f"{prefix}.gate_proj", f"{name}.gate", c.intermediate_size, bias=bias)
    up = b.linear(x, f"{prefix}.up_proj", f"{name}.up", c.intermediate_size, bias=bias)
    activated = b.activation(gate, up, f"{name}.activated")
    return b.linear(activated, f"{prefix}.down_proj", f"{name}.down", c.hidden_size, bias=bias)


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """What distinguishes a family from Llama.

    Attributes:
        qkv_bias, out_bias, mlp_bias: linears with biases.
        qk_norm: norms on each head of q and k before the rotation.
        norm_offset: added to the weights of norms (Gemma's 1).
        post_norms: norms on the outputs of attention and feed-forward before they are added (Gemma).
        embed_scale: factor on embeddings.
        query_scale: factor on scores; None is head_dim ** -0.5.
        attention_softcap, logit_softcap: soft caps, or None.
        window_rope: rotary embedding of windowed layers where it differs (Gemma 3), or None.
        feed_forward: what stands after the second norm.
        top_k: experts per token, 0 without experts.
    """

    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    norm_offset: float = 0.0
    post_norms: bool = False
    embed_scale: float = 1.0
    query_scale: float | None = None
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    window_rope: RopeSpec | None = None
    feed_forward: FeedForward = dense_feed_forward
    top_k: int = 0


def _attention(b: Builder, i: int, x: str) -> str:
    c, variant, prefix, name = b.config, b.variant, f"model.layers.{i}.self_attn", f"layer{i}"
    q_width, kv_width = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    q = b.linear(x, f"{prefix}.q_proj", f"{name}.q", q_width, bias=variant.qkv_bias)
    k = b.linear(x, f"{prefix}.k_proj", f"{name}.k", kv_width, bias=variant.qkv_bias)
    v = b.linear(x, f"{prefix}.v_proj", f"{name}.v", kv_width, bias=variant.qkv_bias)
    if variant.qk_norm:
        q = b.norm(q, f"{prefix}.q_norm.weight", f"{name}.q_normed", c.head_dim)
        k = b.norm(k, f"{prefix}.k_norm.weight", f"{name}.k_normed", c.head_dim)
    group = b.group_of(i)
    rope = 1 if variant.window_rope is not None and group.window is not None else 0
    q = b.rope(q, f"{name}.q_rotated", c.num_attention_heads, rope)
    k = b.rope(k, f"{name}.k_rotated", c.num_key_value_heads, rope)
    inputs: tuple[str, ...] = (q, k, v)
    if b.mode == "serve":
        b.ops.append(ops.KVAppend(inputs=(k, v), output="", layer=i, group=group.index))
        inputs = (q,)
    b.ops.append(
        ops.Attention(
            inputs=inputs,
            output=b.value(f"{name}.attended", q_width),
            layer=i,
            group=group.index,
            num_heads=c.num_attention_heads,
            num_kv_heads=c.num_key_value_heads,
            head_dim=c.head_dim,
            scale=c.head_dim**-0.5 if variant.query_scale is None else variant.query_scale,
            window=group.window,
            softcap=variant.attention_softcap,
        )
    )
    return b.linear(f"{name}.attended", f"{prefix}.o_proj", f"{name}.o", c.hidden_size, bias=variant.out_bias)


def _layer(b: Builder, i: int, hidden: str) -> str:
    prefix, name, has_post = f"model.layers.{i}", f"layer{i}", b.variant.post_norms
    out = _attention(b, i, b.norm(hidden, f"{prefix}.input_layernorm.weight", f"{name}.x"))
    if has_post:
        out = b.norm(out, f"{prefix}.post_attention_layernorm.weight", f"{name}.o_normed")
    hidden = b.add(hidden, out, f"{name}.mid")
    second = "pre_feedforward_layernorm" if has_post else "post_attention_layernorm"
    out = b.variant.feed_forward(b, i, b.norm(hidden, f"{prefix}.{second}.weight", f"{name}.y"))
    if has_post:
        out = b.norm(out, f"{prefix}.post_feedforward_layernorm.weight", f"{name}.down_normed")
    return b.add(hidden, out, f"{name}.out")


def _kv_groups(config: DecoderConfig) -> tuple[KVGroup, ...]:
    """Layers with the same window share a group; full attention comes first."""
    windows = sorted(set(config.windows), key=lambda window: (window is not None, window or 0))
    return tuple(
        KVGroup(
            index=index,
            layers=tuple(i for i, w in enumerate(config.windows) if w == window),
            num_kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            window=window,
        )
        for index, window in enumerate(windows)
    )


def _epilogue(b: Builder, hidden: str, embedding: str) -> None:
    c = b.config
    selected = b.value("selected", c.hidden_size, ROWS)
    b.ops.append(ops.SelectRows(inputs=(hidden,), output=selected))
    logits = b.linear(b.norm(selected, "model.norm.weight", "final"), "lm_head", "logits", c.vocab_size)
    if c.tie_word_embeddings:
        b.weights["lm_head.weight"] = WeightSpec(shape=(c.vocab_size, c.hidden_size), role="matrix", tied_to=embedding)
    if b.variant.logit_softcap is not None:
        capped = b.value("capped_logits", c.vocab_size, ROWS)
        b.ops.append(ops.SoftCap(inputs=(logits,), output=capped, cap=b.variant.logit_softcap))


def decoder(config: DecoderConfig, variant: Variant, mode: Mode) -> Program:
    """The Program of a decoder: embedding, layers, last norm, output layer."""
    b = Builder(config=config, variant=variant, mode=mode, groups=_kv_groups(config))
    embedding = "model.embed_tokens.weight"
    b.weights[embedding] = WeightSpec(shape=(config.vocab_size, config.hidden_size), role="embedding")
    hidden = b.value("embedded", config.hidden_size)
    prologue: tuple[Op, ...] = (ops.Embed(inputs=(), output=hidden, weight=embedding, scale=variant.embed_scale),)
    layers = []
    for i in range(config.num_hidden_layers):
        b.ops = []
        hidden = _layer(b, i, hidden)
        layers.append(tuple(b.ops))
    b.ops = []
    _epilogue(b, hidden, embedding)
    return Program(
        architecture=config.architecture,
        mode=mode,
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        max_position=config.max_position_embeddings,
        ropes=(config.rope,) if variant.window_rope is None else (config.rope, variant.window_rope),
        prologue=prologue,
        layers=tuple(layers),
        epilogue=tuple(b.ops),
        values=b.values,
        weights=b.weights,
        groups=b.groups,
        ignored_weights=("rotary_emb.inv_freq",),
        top_k=variant.top_k,
    )


def layer_windows(raw: RawConfig, window: Any, is_windowed: Callable[[int], bool]) -> tuple[int | None, ...] | None:
    """Per-layer windows: by ``layer_types`` if given, else by the architecture's rule. None when there is no window at all.

    Raises:
        ModelError: the window is not an integer above zero.
    """
    if window is None:
        return None
    if isinstance(window, bool) or not isinstance(window, int) or window <= 0:
        raise ModelError(f"config.json: sliding_window must be an integer above zero or null, got {window!r}")
    kinds = raw.get("layer_types")
    if kinds is not None:
        return tuple(window if kind == "sliding_attention" else None for kind in kinds)
    return tuple(window if is_windowed(i) else None for i in range(positive_int(raw, "num_hidden_layers")))


def experts_feed_forward(
    *, block: str, names: tuple[str, str, str], num_experts: int, width: int, top_k: int, normalize: bool
) -> FeedForward:
    """A sparse feed-forward: router, gate and up of each chosen expert, activation, down, weighted sum.

    Args:
        block: checkpoint name of the block below the layer (``mlp``).
        names: of an expert's gate, up and down.
        width: of one expert; a multiple of 16 like the hidden size, so that experts can be packed side by side.
    """

    def build(b: Builder, i: int, x: str) -> str:
        prefix, name, hidden = f"model.layers.{i}.{block}", f"layer{i}", b.config.hidden_size
        logits = b.linear(x, f"{prefix}.gate", f"{name}.router", num_experts)
        routing = b.value(f"{name}.routing", 2 * top_k)
        b.ops.append(ops.Route(inputs=(logits,), output=routing, top_k=top_k, normalize=normalize))

        def expert(value: str, part: str, out: str, rows: int) -> str:
            columns = b.values[value].width
            weights = tuple(b.matrix(f"{prefix}.experts.{e}.{part}.weight", rows, columns) for e in range(num_experts))
            output = b.value(out, rows, ROUTED)
            b.ops.append(ops.ExpertLinear(inputs=(value, routing), output=output, weights=weights))
            return output

        gate = expert(x, names[0], f"{name}.gate", width)
        up = expert(x, names[1], f"{name}.up", width)
        down = expert(b.activation(gate, up, f"{name}.activated"), names[2], f"{name}.expert_down", hidden)
        b.ops.append(ops.Combine(inputs=(down, routing), output=b.value(f"{name}.down", hidden)))
        return f"{name}.down"

    return build
