# SPDX-License-Identifier: Apache-2.0
"""Llama and its close relatives: Mistral (sliding window), Qwen2 (biases on q, k, v), Qwen3 (norms on q and k).

Source of the computations: Hugging Face transformers' modeling files of the same names; checked against them in the tests.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ziggurat.errors import ModelError
from ziggurat.programs import ops
from ziggurat.programs.architectures import ARCHITECTURES
from ziggurat.programs.config import DecoderConfig, RawConfig, decoder_config, positive_int
from ziggurat.programs.ops import ROWS, Op
from ziggurat.programs.program import KVGroup, Mode, Program, ValueSpec, WeightSpec


@dataclass(slots=True)
class _Builder:
    """Collects operations, values and weights while an architecture function runs."""

    config: DecoderConfig
    mode: Mode
    groups: tuple[KVGroup, ...]
    values: dict[str, ValueSpec] = field(default_factory=dict)
    weights: dict[str, WeightSpec] = field(default_factory=dict)

    def value(self, name: str, width: int, leading: str = ops.TOKENS) -> str:
        self.values[name] = ValueSpec(width=width, leading=leading)
        return name

    def vector(self, name: str, size: int) -> str:
        self.weights[name] = WeightSpec(shape=(size,), role="vector")
        return name

    def norm(self, x: str, weight: str, out: str, span: int) -> ops.Norm:
        spec = self.values[x]
        return ops.Norm(
            inputs=(x,),
            output=self.value(out, spec.width, spec.leading),
            weight=self.vector(weight, span),
            eps=self.config.rms_norm_eps,
            span=span,
        )

    def linear(self, x: str, name: str, out: str, width: int, *, bias: bool) -> ops.Linear:
        spec = self.values[x]
        self.weights[f"{name}.weight"] = WeightSpec(shape=(width, spec.width), role="matrix")
        return ops.Linear(
            inputs=(x,),
            output=self.value(out, width, spec.leading),
            weight=f"{name}.weight",
            bias=self.vector(f"{name}.bias", width) if bias else None,
        )

    def add(self, a: str, b: str, out: str) -> ops.Add:
        return ops.Add(inputs=(a, b), output=self.value(out, self.values[a].width))

    def rope(self, x: str, out: str, num_heads: int) -> ops.Rope:
        width = self.values[x].width
        return ops.Rope(inputs=(x,), output=self.value(out, width), num_heads=num_heads, head_dim=self.config.head_dim)

    def group_of(self, layer: int) -> KVGroup:
        return next(group for group in self.groups if layer in group.layers)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Variant:
    """What distinguishes the relatives."""

    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False


def _attention_ops(b: _Builder, variant: _Variant, i: int, x: str) -> list[Op]:
    c, prefix, name = b.config, f"model.layers.{i}.self_attn", f"layer{i}"
    q_width, kv_width = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    result: list[Op] = [
        b.linear(x, f"{prefix}.q_proj", f"{name}.q", q_width, bias=variant.qkv_bias),
        b.linear(x, f"{prefix}.k_proj", f"{name}.k", kv_width, bias=variant.qkv_bias),
        b.linear(x, f"{prefix}.v_proj", f"{name}.v", kv_width, bias=variant.qkv_bias),
    ]
    q, k, v = f"{name}.q", f"{name}.k", f"{name}.v"
    if variant.qk_norm:
        result.append(b.norm(q, f"{prefix}.q_norm.weight", f"{name}.q_normed", c.head_dim))
        result.append(b.norm(k, f"{prefix}.k_norm.weight", f"{name}.k_normed", c.head_dim))
        q, k = f"{name}.q_normed", f"{name}.k_normed"
    result.append(b.rope(q, f"{name}.q_rotated", c.num_attention_heads))
    result.append(b.rope(k, f"{name}.k_rotated", c.num_key_value_heads))
    q, k = f"{name}.q_rotated", f"{name}.k_rotated"
    group = b.group_of(i)
    inputs: tuple[str, ...] = (q, k, v)
    if b.mode == "serve":
        result.append(ops.KVAppend(inputs=(k, v), output="", layer=i, group=group.index))
        inputs = (q,)
    result.append(
        ops.Attention(
            inputs=inputs,
            output=b.value(f"{name}.attended", q_width),
            layer=i,
            group=group.index,
            num_heads=c.num_attention_heads,
            num_kv_heads=c.num_key_value_heads,
            head_dim=c.head_dim,
            scale=c.head_dim**-0.5,
            window=group.window,
        )
    )
    result.append(b.linear(f"{name}.attended", f"{prefix}.o_proj", f"{name}.o", c.hidden_size, bias=variant.out_bias))
    return result


def _layer_ops(b: _Builder, variant: _Variant, i: int, hidden: str) -> tuple[tuple[Op, ...], str]:
    c, prefix, name = b.config, f"model.layers.{i}", f"layer{i}"
    result: list[Op] = [b.norm(hidden, f"{prefix}.input_layernorm.weight", f"{name}.x", c.hidden_size)]
    result += _attention_ops(b, variant, i, f"{name}.x")
    result.append(b.add(hidden, f"{name}.o", f"{name}.mid"))
    result.append(b.norm(f"{name}.mid", f"{prefix}.post_attention_layernorm.weight", f"{name}.y", c.hidden_size))
    for part in ("gate", "up"):
        result.append(
            b.linear(
                f"{name}.y", f"{prefix}.mlp.{part}_proj", f"{name}.{part}", c.intermediate_size, bias=variant.mlp_bias
            )
        )
    result.append(
        ops.GatedActivation(
            inputs=(f"{name}.gate", f"{name}.up"),
            output=b.value(f"{name}.activated", c.intermediate_size),
            function="silu" if c.hidden_act == "silu" else "gelu_tanh",
        )
    )
    result.append(
        b.linear(f"{name}.activated", f"{prefix}.mlp.down_proj", f"{name}.down", c.hidden_size, bias=variant.mlp_bias)
    )
    result.append(b.add(f"{name}.mid", f"{name}.down", f"{name}.out"))
    return tuple(result), f"{name}.out"


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


def _decoder(config: DecoderConfig, variant: _Variant, mode: Mode) -> Program:
    b = _Builder(config=config, mode=mode, groups=_kv_groups(config))
    embedding = "model.embed_tokens.weight"
    b.weights[embedding] = WeightSpec(shape=(config.vocab_size, config.hidden_size), role="embedding")
    prologue: tuple[Op, ...] = (ops.Embed(inputs=(), output=b.value("embedded", config.hidden_size), weight=embedding),)
    layers, hidden = [], "embedded"
    for i in range(config.num_hidden_layers):
        layer, hidden = _layer_ops(b, variant, i, hidden)
        layers.append(layer)
    selected = b.value("selected", config.hidden_size, ROWS)
    epilogue: tuple[Op, ...] = (
        ops.SelectRows(inputs=(hidden,), output=selected),
        b.norm(selected, "model.norm.weight", "final", config.hidden_size),
        b.linear("final", "lm_head", "logits", config.vocab_size, bias=False),
    )
    if config.tie_word_embeddings:
        b.weights["lm_head.weight"] = WeightSpec(
            shape=(config.vocab_size, config.hidden_size), role="matrix", tied_to=embedding
        )
    return Program(
        architecture=config.architecture,
        mode=mode,
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        max_position=config.max_position_embeddings,
        rope=config.rope,
        prologue=prologue,
        layers=tuple(layers),
        epilogue=epilogue,
        values=b.values,
        weights=b.weights,
        groups=b.groups,
        ignored_weights=("rotary_emb.inv_freq",),
    )


def _layer_windows(raw: RawConfig, window: Any, first_windowed: int) -> tuple[int | None, ...] | None:
    """Per-layer windows from ``layer_types`` if given, else from the first layer that slides."""
    num_layers = positive_int(raw, "num_hidden_layers")
    kinds = raw.get("layer_types")
    if window is None:
        return None
    if isinstance(window, bool) or not isinstance(window, int) or window <= 0:
        raise ModelError(f"config.json: sliding_window must be an integer above zero or null, got {window!r}")
    if kinds is not None:
        return tuple(window if kind == "sliding_attention" else None for kind in kinds)
    return tuple(window if i >= first_windowed else None for i in range(num_layers))


@ARCHITECTURES.register("LlamaForCausalLM")
def llama(raw: RawConfig, mode: Mode = "serve") -> Program:
    """Llama 1-3 shapes (rope scaling is refused by name)."""
    bias = bool(raw.get("attention_bias", False))
    variant = _Variant(qkv_bias=bias, out_bias=bias, mlp_bias=bool(raw.get("mlp_bias", False)))
    return _decoder(decoder_config(raw), variant, mode)


# What transformers' configuration classes assume when config.json leaves a field out.
_MISTRAL_DEFAULTS: RawConfig = {"num_key_value_heads": 8, "sliding_window": 4096, "max_position_embeddings": 131072}
_QWEN_DEFAULTS: RawConfig = {"num_key_value_heads": 32, "sliding_window": 4096, "max_position_embeddings": 32768}
_QWEN_MAX_WINDOW_LAYERS = 28


@ARCHITECTURES.register("MistralForCausalLM")
def mistral(raw: RawConfig, mode: Mode = "serve") -> Program:
    """Mistral: Llama with a sliding window on every layer (null switches it off)."""
    raw = {**_MISTRAL_DEFAULTS, **raw}
    return _decoder(decoder_config(raw, _layer_windows(raw, raw["sliding_window"], 0)), _Variant(), mode)


@ARCHITECTURES.register("Qwen2ForCausalLM")
def qwen2(raw: RawConfig, mode: Mode = "serve") -> Program:
    """Qwen2, 2.5: biases on q, k and v; the window counts only with ``use_sliding_window``, from ``max_window_layers`` on."""
    raw = {**_QWEN_DEFAULTS, **raw}
    return _decoder(decoder_config(raw, _qwen_windows(raw)), _Variant(qkv_bias=True), mode)


@ARCHITECTURES.register("Qwen3ForCausalLM")
def qwen3(raw: RawConfig, mode: Mode = "serve") -> Program:
    """Qwen3 dense: norms on each head of q and k before the rotation; explicit head_dim."""
    raw = {"head_dim": 128, **_QWEN_DEFAULTS, **raw}
    bias = bool(raw.get("attention_bias", False))
    variant = _Variant(qkv_bias=bias, out_bias=bias, qk_norm=True)
    return _decoder(decoder_config(raw, _qwen_windows(raw)), variant, mode)


def _qwen_windows(raw: RawConfig) -> tuple[int | None, ...] | None:
    if not raw.get("use_sliding_window", False):
        return None
    first = raw.get("max_window_layers", _QWEN_MAX_WINDOW_LAYERS)
    return _layer_windows(raw, raw["sliding_window"], int(first))
