# SPDX-License-Identifier: Apache-2.0
"""A decoder as plain arrays, and its forward pass in NumPy with places to look in or to round.

The reference for rewrites and number formats: slow, exact, in the precision of its arrays. It knows Llama, Mistral, Qwen2 and Qwen3
(grouped queries, biases, norms per head, windows), by Hugging Face's tensor names.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ziggurat.errors import ModelError, UnsupportedFeature
from ziggurat.programs.config import DecoderConfig, decoder_config, load_config

Floats = NDArray[Any]
Ints = NDArray[np.int64]
Linear = Callable[[str, Floats, Floats], Floats]
Entries = Callable[[int, Floats], Floats]
ORDER_RULE = "channel_order"
_RECORD = "ziggurat_transforms"


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseCheckpoint:
    """Weights as arrays of one float type, [out, in] where they are matrices.

    Attributes:
        raw: config.json, without what transforms added.
        orders: per layer [KV heads, head_dim]: stored channel c of a head's keys (and of its queries) is channel order[c] of the
            original; layers that are not there have the original order. Rotary embeddings follow it.
        applied: ``name:fingerprint`` of the transforms in these weights, oldest first.
    """

    raw: Mapping[str, Any]
    config: DecoderConfig
    tensors: Mapping[str, Floats]
    orders: Mapping[int, Ints] = field(default_factory=dict)
    applied: tuple[str, ...] = ()

    def with_tensors(self, changed: Mapping[str, Floats]) -> DenseCheckpoint:
        """The same with some tensors replaced."""
        return replace(self, tensors={**self.tensors, **changed})


def dense_checkpoint(raw: Mapping[str, Any], tensors: Mapping[str, Floats]) -> DenseCheckpoint:
    """Checked: of an architecture whose forward pass is known here.

    Raises:
        UnsupportedFeature: another architecture.
    """
    config = decoder_config(raw)
    known = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
    if config.architecture not in known:
        raise UnsupportedFeature(
            f"rewriting {config.architecture} is not built. Known: {', '.join(known)}",
            feature=f"transform:{config.architecture}",
        )
    return DenseCheckpoint(raw=raw, config=config, tensors=tensors)


def load_dense(folder: Path) -> DenseCheckpoint:
    """A folder of safetensors in fp32, with the transforms that it records.

    Raises:
        ModelError, ModelNotFound, UnsupportedFeature: as for any model folder.
    """
    from safetensors.torch import load_file

    raw = load_config(folder)
    record = raw.pop(_RECORD, {})
    if record.get("orders"):
        raw["rope_parameters"] = raw["rope_parameters"]["original"]
        if raw["rope_parameters"] is None:
            del raw["rope_parameters"]
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise ModelError(f"{folder} holds no *.safetensors file")
    tensors = {name: tensor.float().numpy() for path in paths for name, tensor in load_file(path).items()}
    orders = {int(layer): np.array(order, dtype=np.int64) for layer, order in record.get("orders", {}).items()}
    return replace(dense_checkpoint(raw, tensors), orders=orders, applied=tuple(record.get("applied", ())))


def save_dense(checkpoint: DenseCheckpoint, folder: Path) -> None:
    """Writes config.json and model.safetensors in fp32. Orders of channels go into the configuration as a rope rule of their own, so
    that a reader who does not know it refuses the folder and cannot compute something else with it."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    raw: dict[str, Any] = {**checkpoint.raw, "dtype": "float32"}
    if checkpoint.applied:
        orders = {str(layer): order.tolist() for layer, order in checkpoint.orders.items()}
        raw[_RECORD] = {"applied": list(checkpoint.applied), "orders": orders}
        if orders:
            raw["rope_parameters"] = {"rope_type": ORDER_RULE, "original": checkpoint.raw.get("rope_parameters")}
    tensors = {name: torch.from_numpy(np.array(array, np.float32)) for name, array in checkpoint.tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")


def _plain_linear(_name: str, x: Floats, weight: Floats) -> Floats:
    return x @ weight.T


def _plain_entries(_layer: int, entries: Floats) -> Floats:
    return entries


@dataclass(slots=True)
class ReferenceDecoder:
    """The forward pass.

    Args:
        linear: called for every linear of a layer with its tensor's name, x [T, in] and the weight; gives x @ weight.T, or what a
            number format makes of it.
        keys, values: called with a layer's keys (after rope) or values [T, KV heads, head_dim]; give what the cache shows.
    """

    checkpoint: DenseCheckpoint
    linear: Linear = _plain_linear
    keys: Entries = _plain_entries
    values: Entries = _plain_entries

    def logits(self, ids: Ints) -> Floats:
        """[T, vocabulary] of one sequence of token ids."""
        tensors, config = self.checkpoint.tensors, self.checkpoint.config
        x = tensors["model.embed_tokens.weight"][ids]
        for layer in range(config.num_hidden_layers):
            prefix = f"model.layers.{layer}."
            x = x + self._attention(layer, prefix, self._norm(x, prefix + "input_layernorm.weight"))
            x = x + self._feed_forward(prefix, self._norm(x, prefix + "post_attention_layernorm.weight"))
        head = "model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
        return np.asarray(self._norm(x, "model.norm.weight") @ tensors[head].T)

    def loss(self, ids: Ints) -> Floats:
        """Negative log-probability of every token but the first, [T - 1]."""
        logits = self.logits(ids)[:-1]
        top = logits.max(-1, keepdims=True)
        total = top[:, 0] + np.log(np.exp(logits - top).sum(-1))
        return np.asarray(total - logits[np.arange(len(logits)), ids[1:]])

    def _norm(self, x: Floats, name: str) -> Floats:
        scale = 1 / np.sqrt((x * x).mean(-1, keepdims=True) + self.checkpoint.config.rms_norm_eps)
        return np.asarray(x * scale * self.checkpoint.tensors[name])

    def _project(self, name: str, x: Floats) -> Floats:
        y = self.linear(name, x, self.checkpoint.tensors[name + ".weight"])
        bias = self.checkpoint.tensors.get(name + ".bias")
        return y if bias is None else y + bias

    def _feed_forward(self, prefix: str, x: Floats) -> Floats:
        gate, up = self._project(prefix + "mlp.gate_proj", x), self._project(prefix + "mlp.up_proj", x)
        return self._project(prefix + "mlp.down_proj", gate / (1 + np.exp(-gate)) * up)

    def _attention(self, layer: int, prefix: str, x: Floats) -> Floats:
        config, prefix = self.checkpoint.config, prefix + "self_attn."
        heads, kv_heads, dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        q = self._project(prefix + "q_proj", x).reshape(len(x), heads, dim)
        k = self._project(prefix + "k_proj", x).reshape(len(x), kv_heads, dim)
        v = self._project(prefix + "v_proj", x).reshape(len(x), kv_heads, dim)
        if prefix + "q_norm.weight" in self.checkpoint.tensors:
            q, k = self._norm(q, prefix + "q_norm.weight"), self._norm(k, prefix + "k_norm.weight")
        order = self.checkpoint.orders.get(layer)
        order = np.tile(np.arange(dim), (kv_heads, 1)) if order is None else order
        group = heads // kv_heads
        k, q = self._rope(k, order), self._rope(q, np.repeat(order, group, axis=0))
        k, v = self.keys(layer, k), self.values(layer, v)
        k, v = np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)
        scores = np.einsum("qhd,khd->hqk", q, k, optimize=True) / math.sqrt(dim)
        scores = np.where(_visible(len(x), config.windows[layer]), scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        out = np.einsum("hqk,khd->qhd", weights, v, optimize=True)
        return self._project(prefix + "o_proj", out.reshape(len(x), heads * dim))

    def _rope(self, x: Floats, order: Ints) -> Floats:
        """Rotation of channels in any order: every channel has a partner, a sign and a frequency."""
        rope, dim = self.checkpoint.config.rope, x.shape[-1]
        half = dim // 2
        stored = np.argsort(order, axis=1)
        partner = np.take_along_axis(stored, (order + half) % dim, axis=1)
        sign = np.where(order < half, -1.0, 1.0)
        frequency = np.array(rope.frequencies)[order % half]
        angle = np.arange(len(x))[:, None, None] * frequency
        cos, sin = rope.attention_scaling * np.cos(angle), rope.attention_scaling * np.sin(angle) * sign
        turned = np.take_along_axis(x, np.broadcast_to(partner, x.shape), axis=2)
        return np.asarray(x * cos.astype(x.dtype) + turned * sin.astype(x.dtype))


def _visible(length: int, window: int | None) -> NDArray[np.bool_]:
    behind = np.arange(length)[:, None] - np.arange(length)[None, :]
    return np.asarray((behind >= 0) & (behind < (window or length)))
