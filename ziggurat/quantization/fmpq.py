# SPDX-License-Identifier: Apache-2.0
"""FMPQ: 4-bit weights, and activations in 4 bits but for the blocks of channels that hold outliers, which have 8.

Outlier channels are found by calibration and put together, so that few blocks hold any. Activations are packed with one scale per token
and block and a precision per block; a product of a block is one of integers:

::

    block    4 bits  codes -8 .. 7 as unsigned nibbles, two a byte       8 bits  codes -127 .. 127
    product  sum(u * a) - 8 * sum(a),  u = w + 8 in 0 .. 15: what byte multiply-adds compute without saturating

Source: COMET, arXiv 2410.12168, sections 3 and 4. The paper's threshold of an outlier is not published: ``OUTLIER_FACTOR`` is ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ziggurat.errors import ConfigError
from ziggurat.quantization.dense import DenseCheckpoint, Floats, Ints, ReferenceDecoder
from ziggurat.quantization.transforms import Edge, EquivalentTransform, Permute, Scale

OUTLIER_FACTOR = 6.0
NORM_EDGES: tuple[Edge, Edge] = ("norm-qkv", "norm-mlp")
BLOCK = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelPlan:
    """How a linear's input is packed.

    Attributes:
        order: packed channel c is channel order[c].
        is_wide: per block, whether it has 8 bits.
    """

    block: int
    order: Ints
    is_wide: NDArray[np.bool_]

    @property
    def wide_share(self) -> float:
        """Of the blocks."""
        return float(self.is_wide.mean())


@dataclass(frozen=True, slots=True)
class MixedActivations:
    """Packed rows: nibbles uint8 [T, 4-bit blocks, block / 2], codes int8 [T, 8-bit blocks, block], scales fp32 [T, blocks]."""

    plan: ChannelPlan
    nibbles: NDArray[np.uint8]
    codes: NDArray[np.int8]
    scales: NDArray[np.float32]

    def integers(self) -> NDArray[np.int32]:
        """[T, blocks, block]."""
        low = np.concatenate([self.nibbles & 15, self.nibbles >> 4], axis=-1).astype(np.int32) - 8
        found = np.empty((*self.scales.shape, self.plan.block), np.int32)
        found[:, ~self.plan.is_wide], found[:, self.plan.is_wide] = low, self.codes
        return found


@dataclass(frozen=True, slots=True)
class Nibbles:
    """Weights: unsigned codes 0 .. 15 [out, blocks, block] of w + 8, scales fp32 [out, blocks]; channels in the plan's order."""

    codes: NDArray[np.uint8]
    scales: NDArray[np.float32]


def collect_absmax(checkpoint: DenseCheckpoint, prompts: Sequence[Ints]) -> dict[str, Floats]:
    """Per linear the largest magnitude of every input channel.

    Raises:
        ConfigError: no prompts.
    """
    if not prompts:
        raise ConfigError("calibration without data: at least one prompt is needed")
    found: dict[str, Floats] = {}

    def look(name: str, x: Floats, weight: Floats) -> Floats:
        found[name] = np.maximum(found.get(name, 0.0), np.abs(x).max(0))
        return x @ weight.T

    for prompt in prompts:
        ReferenceDecoder(checkpoint, linear=look).logits(prompt)
    return found


def plan_channels(
    absmax: Floats, *, block: int = BLOCK, factor: float = OUTLIER_FACTOR, permute: bool = True
) -> ChannelPlan:
    """Channels by magnitude, largest first, and the blocks that hold one above ``factor`` times the median.

    Raises:
        ConfigError: the channels are no whole number of blocks.
    """
    if len(absmax) % block:
        raise ConfigError(f"{len(absmax)} channels are no whole number of blocks of {block}: pad with zero channels")
    order = np.argsort(-absmax, kind="stable") if permute else np.arange(len(absmax))
    is_outlier = absmax[order] > factor * np.median(absmax)
    return ChannelPlan(block=block, order=order, is_wide=is_outlier.reshape(-1, block).any(1))


def pack_activations(x: Floats, plan: ChannelPlan) -> MixedActivations:
    """Gather, scale per token and block, round. A block of zeros has the scale 0."""
    blocks = x[:, plan.order].reshape(len(x), -1, plan.block).astype(np.float32)
    top = np.where(plan.is_wide, np.float32(127), np.float32(7))
    scales = np.abs(blocks).max(-1) / top
    inverse = np.divide(np.float32(1), scales, out=np.zeros_like(scales), where=scales > 0)
    rounded = np.clip(np.rint(blocks * inverse[..., None]), -top[:, None], top[:, None]).astype(np.int8)
    unsigned = (rounded[:, ~plan.is_wide] + 8).astype(np.uint8)
    half = plan.block // 2
    nibbles = unsigned[..., :half] | unsigned[..., half:] << 4
    return MixedActivations(plan, nibbles, rounded[:, plan.is_wide], scales)


def pack_weights(weight: Floats, plan: ChannelPlan) -> Nibbles:
    """4 bits, symmetric, rounded to nearest, a scale per output and block."""
    blocks = weight[:, plan.order].reshape(len(weight), -1, plan.block).astype(np.float32)
    scales = np.abs(blocks).max(-1) / np.float32(7)
    inverse = np.divide(np.float32(1), scales, out=np.zeros_like(scales), where=scales > 0)
    codes = np.clip(np.rint(blocks * inverse[..., None]), -7, 7) + 8
    return Nibbles(codes.astype(np.uint8), scales)


def block_products(x: MixedActivations, weight: Nibbles) -> NDArray[np.int32]:
    """Integer products [T, out, blocks], with unsigned weight codes and the correction by 8 * sum(a).

    Multiplied in fp32, which is exact: a block's sum stays below 15 * 127 * block, and that below 2^24.
    """
    a = x.integers()
    assert 15 * 127 * x.plan.block < 2**24, f"blocks of {x.plan.block} need wider sums"
    raw = a.astype(np.float32).transpose(1, 0, 2) @ weight.codes.astype(np.float32).transpose(1, 2, 0)
    return np.asarray(raw.transpose(1, 2, 0).astype(np.int32) - 8 * a.sum(-1, dtype=np.int32)[:, None, :])


def w4ax(x: MixedActivations, weight: Nibbles) -> NDArray[np.float32]:
    """x @ weight.T, fp32 [T, out]: exact inside a block, scaled and summed block by block."""
    parts = block_products(x, weight).astype(np.float32) * x.scales[:, None, :] * weight.scales[None]
    return np.asarray(parts.sum(-1, dtype=np.float32))


def shown_weights(weight: Nibbles, plan: ChannelPlan) -> NDArray[np.float32]:
    """The weights as they were rounded, in their own order of channels."""
    found = np.empty((len(weight.codes), len(plan.order)), np.float32)
    signed = weight.codes.astype(np.float32) - 8
    found[:, plan.order] = (signed * weight.scales[..., None]).reshape(found.shape)
    return found


def fold_order(checkpoint: DenseCheckpoint, absmax: Mapping[str, Floats]) -> EquivalentTransform:
    """The orders that cost nothing at run time: of what down projections read. Norms' outputs are gathered when they are packed."""
    steps: list[Any] = []
    for layer in range(checkpoint.config.num_hidden_layers):
        score = absmax[f"model.layers.{layer}.mlp.down_proj"]
        steps.append(Permute(layer, "up-down", np.argsort(-score, kind="stable")))
    return EquivalentTransform("fmpq", tuple(steps))


def norm_outliers(checkpoint: DenseCheckpoint, *, share: float, seed: int) -> EquivalentTransform:
    """Outliers that leave the function alone: that share of every norm's gains 20 to 60 times as large, and its consumers' columns as
    much smaller."""
    rng, width, steps = np.random.default_rng(seed), checkpoint.config.hidden_size, []
    count = max(1, round(share * width))
    for layer in range(checkpoint.config.num_hidden_layers):
        for edge in NORM_EDGES:
            factors = np.ones(width)
            factors[rng.choice(width, count, replace=False)] = rng.uniform(20, 60, count)
            steps.append(Scale(layer, edge, factors))
    return EquivalentTransform("norm-outliers", tuple(steps))
