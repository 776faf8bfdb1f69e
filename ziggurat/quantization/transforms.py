# SPDX-License-Identifier: Apache-2.0
"""Rewrites of a model that leave its function alone: channels permuted or scaled, folded into the weights on both sides of an edge.

::

    edge      producer                     consumers               permute        scale
    norm-qkv  input norm's gain            q, k, v columns         no: residual   yes
    norm-mlp  post-attention norm's gain   gate, up columns        no: residual   yes
    up-down   gate and up rows             down columns            yes            up's rows only
    v-o       v rows                       o columns               inside a head  inside a head
    q-k       k rows, k norm               q rows, q norm          inside a head  pair by pair

A norm's input is the residual stream, which all layers share: its channels cannot move for one layer alone. Rows of a KV head go with
those of all query heads of its group. Rotary embeddings turn channels in pairs; `DenseCheckpoint.orders` says where a pair's two are,
so any order inside a head is allowed, and a scale must be the same for both.

Sources: arXiv 2403.20137 (K-sort), arXiv 2410.12168 (COMET).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ziggurat.errors import ConfigError, TransformAlreadyApplied, UnsupportedFeature
from ziggurat.quantization.dense import DenseCheckpoint, Floats, Ints

Edge = Literal["norm-qkv", "norm-mlp", "up-down", "v-o", "q-k"]
EDGES: tuple[Edge, ...] = get_args(Edge)
_NORMS: dict[str, tuple[str, tuple[str, ...]]] = {
    "norm-qkv": ("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    "norm-mlp": ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
}


@dataclass(frozen=True, slots=True)
class Permute:
    """New channel c is old channel order[c].

    Attributes:
        order: [channels] for up-down, [KV heads, head_dim] inside heads.
    """

    layer: int
    edge: Edge
    order: Ints

    def inverse(self) -> Permute:
        """The way back."""
        return Permute(self.layer, self.edge, np.argsort(self.order, axis=-1))


@dataclass(frozen=True, slots=True)
class Scale:
    """What flows over the edge is multiplied channel by channel (keys on q-k), and its consumers divide by the same.

    Attributes:
        factors: above zero; [channels], or [KV heads, head_dim] inside heads.
        divides: multiplied by 1 / factors instead. A flag, so that the inverse of the inverse has the same fingerprint.
    """

    layer: int
    edge: Edge
    factors: NDArray[np.float64]
    divides: bool = False

    def inverse(self) -> Scale:
        """The way back."""
        return Scale(self.layer, self.edge, self.factors, not self.divides)

    @property
    def by(self) -> NDArray[np.float64]:
        """What the flow is multiplied by."""
        return 1 / self.factors if self.divides else self.factors


@dataclass(frozen=True, slots=True)
class EquivalentTransform:
    """Steps in the order in which they are folded.

    Attributes:
        name: what it is for (``ksort``). A checkpoint takes one transform of a name.
    """

    name: str
    steps: tuple[Permute | Scale, ...]

    def inverse(self) -> EquivalentTransform:
        """The way back: exact for permutations and for scales that are powers of two."""
        return EquivalentTransform(self.name, tuple(step.inverse() for step in reversed(self.steps)))

    def fingerprint(self) -> str:
        """16 hexadecimal digits that depend on every step; of caches and adapters that belong to these weights."""
        digest = hashlib.sha256(self.name.encode())
        for step in self.steps:
            data = step.order if isinstance(step, Permute) else step.factors
            kind = "permute" if isinstance(step, Permute) else "divide" if step.divides else "scale"
            digest.update(f"{kind} {step.layer} {step.edge} {data.shape}".encode())
            digest.update(np.ascontiguousarray(data, "<i8" if isinstance(step, Permute) else "<f8").tobytes())
        return digest.hexdigest()[:16]

    @property
    def entry(self) -> str:
        """As a checkpoint records it."""
        return f"{self.name}:{self.fingerprint()}"

    def fold(self, checkpoint: DenseCheckpoint) -> DenseCheckpoint:
        """The same function with other weights. Folding the inverse of the last transform takes it away again.

        Raises:
            TransformAlreadyApplied: one of this name is in the weights.
            ConfigError: a step does not fit the model.
            UnsupportedFeature: a step that cannot be folded, with the reason.
        """
        is_undo = bool(checkpoint.applied) and checkpoint.applied[-1] == self.inverse().entry
        twin = next((entry for entry in checkpoint.applied if entry.split(":")[0] == self.name), None)
        if twin is not None and not is_undo:
            raise TransformAlreadyApplied(
                f"the checkpoint holds {twin} already; fold its inverse first, or start from the original weights"
            )
        applied = checkpoint.applied[:-1] if is_undo else (*checkpoint.applied, self.entry)
        for step in self.steps:
            checkpoint = _permuted(checkpoint, step) if isinstance(step, Permute) else _scaled(checkpoint, step)
        return replace(checkpoint, applied=applied)


def check_belongs(applied: Sequence[str], wanted: Sequence[str], what: str) -> None:
    """Refuse an adapter or a saved cache that was made with other channel orders.

    Raises:
        ConfigError: the transforms differ.
    """
    if tuple(applied) != tuple(wanted):
        raise ConfigError(
            f"{what} belongs to weights with the transforms {list(wanted) or 'none'}, these have {list(applied) or 'none'}: "
            "its channels stand in another order; make it again from these weights"
        )


def _permuted(checkpoint: DenseCheckpoint, step: Permute) -> DenseCheckpoint:
    _check_edge(checkpoint, step.layer, step.edge)
    prefix, tensors = f"model.layers.{step.layer}.", checkpoint.tensors
    if step.edge in _NORMS:
        raise UnsupportedFeature(
            f"layer {step.layer}: a norm reads the residual stream, whose channels all layers share, so they cannot be permuted for "
            "one layer; permute what linears read (up-down, v-o), or gather when activations are packed",
            feature="transform:permute-residual",
        )
    if step.edge == "up-down":
        order = _order(step.order, (checkpoint.config.intermediate_size,))
        changed = _rows(tensors, prefix + "mlp.gate_proj", order) | _rows(tensors, prefix + "mlp.up_proj", order)
        down = prefix + "mlp.down_proj.weight"
        return checkpoint.with_tensors(changed | {down: tensors[down][:, order]})
    order = _order(step.order, (checkpoint.config.num_key_value_heads, checkpoint.config.head_dim))
    kv, queries = _of_heads(checkpoint, order)
    attention = prefix + "self_attn."
    if step.edge == "v-o":
        out = attention + "o_proj.weight"
        return checkpoint.with_tensors(_rows(tensors, attention + "v_proj", kv) | {out: tensors[out][:, queries]})
    changed = _rows(tensors, attention + "k_proj", kv) | _rows(tensors, attention + "q_proj", queries)
    for name in (attention + "q_norm.weight", attention + "k_norm.weight"):
        if name in tensors:
            if (order != order[0]).any():
                raise UnsupportedFeature(
                    f"{name} is one gain for all heads: with norms per head all KV heads of a layer need the same order",
                    feature="transform:qk-norm",
                )
            changed[name] = tensors[name][order[0]]
    before = checkpoint.orders.get(step.layer)
    now = order if before is None else np.take_along_axis(before, order, axis=1)
    orders = {**checkpoint.orders, step.layer: now}
    if (now == np.arange(now.shape[1])).all():
        del orders[step.layer]
    return replace(checkpoint.with_tensors(changed), orders=orders)


def _scaled(checkpoint: DenseCheckpoint, step: Scale) -> DenseCheckpoint:
    _check_edge(checkpoint, step.layer, step.edge)
    config, tensors, prefix = checkpoint.config, checkpoint.tensors, f"model.layers.{step.layer}."
    if not (np.isfinite(step.factors) & (step.factors > 0)).all():
        raise ConfigError(f"layer {step.layer}, {step.edge}: scales must be above zero")
    if step.edge in _NORMS:
        norm, consumers = _NORMS[step.edge]
        by = _factors(step.by, (config.hidden_size,))
        gain = f"{prefix}{norm}.weight"
        changed = {gain: _times(tensors[gain], by)}
        return checkpoint.with_tensors(
            changed
            | {f"{prefix}{name}.weight": _times(tensors[f"{prefix}{name}.weight"], 1 / by) for name in consumers}
        )
    if step.edge == "up-down":
        by = _factors(step.by, (config.intermediate_size,))
        down = prefix + "mlp.down_proj.weight"
        changed = _scaled_rows(tensors, prefix + "mlp.up_proj", by)
        return checkpoint.with_tensors(changed | {down: _times(tensors[down], 1 / by)})
    by = _factors(step.by, (config.num_key_value_heads, config.head_dim))
    of_queries = np.repeat(by, config.num_attention_heads // config.num_key_value_heads, axis=0).ravel()
    attention = prefix + "self_attn."
    if step.edge == "v-o":
        out = attention + "o_proj.weight"
        changed = _scaled_rows(tensors, attention + "v_proj", by.ravel())
        return checkpoint.with_tensors(changed | {out: _times(tensors[out], 1 / of_queries)})
    return checkpoint.with_tensors(_scaled_keys(checkpoint, step.layer, by, of_queries))


def _scaled_keys(checkpoint: DenseCheckpoint, layer: int, by: Floats, of_queries: Floats) -> dict[str, Floats]:
    tensors, attention = checkpoint.tensors, f"model.layers.{layer}.self_attn."
    order = checkpoint.orders.get(layer)
    stored = np.tile(np.arange(by.shape[1]), (len(by), 1)) if order is None else np.argsort(order, axis=1)
    original = np.take_along_axis(by, stored, axis=1)
    half = by.shape[1] // 2
    if (original[:, :half] != original[:, half:]).any():
        raise ConfigError(
            f"layer {layer}: rotary embeddings mix pairs of channels, so both of a pair need the same scale"
        )
    if attention + "k_norm.weight" not in tensors:
        return _scaled_rows(tensors, attention + "k_proj", by.ravel()) | _scaled_rows(
            tensors, attention + "q_proj", 1 / of_queries
        )
    if (by != by[0]).any():
        raise UnsupportedFeature(
            f"layer {layer}: norms per head have one gain for all heads, so all KV heads need the same scales",
            feature="transform:qk-norm",
        )
    return {
        attention + "k_norm.weight": _times(tensors[attention + "k_norm.weight"], by[0]),
        attention + "q_norm.weight": _times(tensors[attention + "q_norm.weight"], 1 / by[0]),
    }


def _check_edge(checkpoint: DenseCheckpoint, layer: int, edge: str) -> None:
    config = checkpoint.config
    if edge not in EDGES:
        raise ConfigError(f"unknown edge {edge!r}. Known: {', '.join(EDGES)}")
    if not 0 <= layer < config.num_hidden_layers:
        raise ConfigError(f"layer {layer} of a model with {config.num_hidden_layers} layers")
    for part in ("q_norm", "k_norm"):
        norm = checkpoint.tensors.get(f"model.layers.{layer}.self_attn.{part}.weight")
        if norm is not None and norm.shape != (config.head_dim,):
            raise UnsupportedFeature(
                f"layer {layer}: {part} spans {norm.size} channels and not one head ({config.head_dim}): it cannot be folded",
                feature="transform:qk-norm",
            )


def _order(order: Ints, shape: tuple[int, ...]) -> Ints:
    if order.shape != shape or (np.sort(order, axis=-1) != np.arange(shape[-1])).any():
        inside = " inside every KV head: channels cannot leave their head" if len(shape) == 2 else ""
        raise ConfigError(f"an order of shape {list(order.shape)} is no permutation of {list(shape)}{inside}")
    return order


def _factors(factors: Floats, shape: tuple[int, ...]) -> Floats:
    if factors.shape != shape:
        raise ConfigError(f"scales of shape {list(factors.shape)} for {list(shape)} channels")
    return factors


def _of_heads(checkpoint: DenseCheckpoint, order: Ints) -> tuple[Ints, Ints]:
    """An order inside KV heads as one of all rows, and the same for the rows of the query heads."""
    heads, dim = checkpoint.config.num_attention_heads, checkpoint.config.head_dim
    per_query = np.repeat(order, heads // len(order), axis=0)
    return (order + dim * np.arange(len(order))[:, None]).ravel(), (per_query + dim * np.arange(heads)[:, None]).ravel()


def _rows(tensors: Any, name: str, order: Ints) -> dict[str, Floats]:
    parts = (name + ".weight", name + ".bias")
    return {part: tensors[part][order] for part in parts if part in tensors}


def _times(array: Floats, by: Floats) -> Floats:
    return (array * by).astype(array.dtype)


def _scaled_rows(tensors: Any, name: str, by: Floats) -> dict[str, Floats]:
    found = {name + ".weight": _times(tensors[name + ".weight"], by[:, None])}
    if name + ".bias" in tensors:
        found[name + ".bias"] = _times(tensors[name + ".bias"], by)
    return found
