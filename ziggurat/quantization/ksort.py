# SPDX-License-Identifier: Apache-2.0
"""K-sort: the channels of every head's keys in the order of their size, so that outliers share few blocks of a block format.

The order is folded into the rows of W_k and W_q (`transforms`), so it costs nothing at run time. Scores are the norms of W_k's rows,
which need no data, or the mean |k| after rope of some prompts.

Source: "Accurate Block Quantization in LLMs with Outliers", arXiv 2403.20137, section 4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from ziggurat.errors import ConfigError
from ziggurat.quantization.dense import DenseCheckpoint, Floats, Ints, ReferenceDecoder, load_dense, save_dense
from ziggurat.quantization.transforms import EquivalentTransform, Permute, Scale

OrderRule = Literal["identity", "random", "norm", "calibrated"]
ORDER_RULES: tuple[OrderRule, ...] = get_args(OrderRule)
Scores = Mapping[int, Floats]


def norm_scores(checkpoint: DenseCheckpoint) -> dict[int, Floats]:
    """Per layer [KV heads, head_dim]: norms of W_k's rows; with norms per head their gains, which alone set a channel's size then."""
    config, found = checkpoint.config, {}
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}.self_attn."
        shape = (config.num_key_value_heads, config.head_dim)
        gain = checkpoint.tensors.get(prefix + "k_norm.weight")
        rows = np.linalg.norm(checkpoint.tensors[prefix + "k_proj.weight"], axis=1).reshape(shape)
        found[layer] = rows if gain is None else np.tile(np.abs(gain), (shape[0], 1))
    return found


def calibrated_scores(checkpoint: DenseCheckpoint, prompts: Sequence[Ints]) -> dict[int, Floats]:
    """Per layer [KV heads, head_dim]: mean |k| after rope over all tokens.

    Raises:
        ConfigError: no prompts.
    """
    if not prompts:
        raise ConfigError("calibration without data: at least one prompt is needed")
    sums: dict[int, Floats] = {}

    def look(layer: int, keys: Floats) -> Floats:
        sums[layer] = sums.get(layer, 0.0) + np.abs(keys).sum(0)
        return keys

    for prompt in prompts:
        ReferenceDecoder(checkpoint, keys=look).logits(prompt)
    total = sum(len(prompt) for prompt in prompts)
    return {layer: found / total for layer, found in sums.items()}


def ksort(checkpoint: DenseCheckpoint, scores: Scores) -> EquivalentTransform:
    """Channels of every KV head, largest score first, ties in their old order. With norms per head all heads of a layer get one order,
    by the mean of their scores, since they share the norm's gain."""
    steps = []
    for layer, score in sorted(scores.items()):
        shared = f"model.layers.{layer}.self_attn.k_norm.weight" in checkpoint.tensors
        ranked = np.tile(score.mean(0), (len(score), 1)) if shared else score
        steps.append(Permute(layer, "q-k", np.argsort(-ranked, axis=1, kind="stable")))
    return EquivalentTransform("ksort", tuple(steps))


def ksort_by(
    checkpoint: DenseCheckpoint, rule: OrderRule, *, prompts: Sequence[Ints] = (), seed: int = 0
) -> EquivalentTransform:
    """The transform of a rule; ``random`` and ``identity`` are for comparison.

    Raises:
        ConfigError: unknown rule, or ``calibrated`` without prompts.
    """
    if rule not in ORDER_RULES:
        raise ConfigError(f"unknown order {rule!r}. Known: {', '.join(ORDER_RULES)}")
    scores = calibrated_scores(checkpoint, prompts) if rule == "calibrated" else norm_scores(checkpoint)
    if rule == "identity":
        scores = {layer: np.zeros_like(score) for layer, score in scores.items()}
    if rule == "random":
        rng = np.random.default_rng(seed)
        scores = {layer: rng.random(score.shape) for layer, score in scores.items()}
    return ksort(checkpoint, scores)


def fold_ksort(
    source: Path, out: Path, *, rule: OrderRule = "norm", prompts: Sequence[Ints] = ()
) -> EquivalentTransform:
    """Read a folder, sort, and write another with the orders and their fingerprint in its configuration.

    Raises:
        TransformAlreadyApplied: the folder is sorted already.
        ConfigError, ModelError, UnsupportedFeature: as `load_dense` and `EquivalentTransform.fold`.
    """
    checkpoint = load_dense(source)
    transform = ksort_by(checkpoint, rule, prompts=prompts)
    save_dense(transform.fold(checkpoint), out)
    return transform


def agreement(first: Scores, second: Scores, share: float) -> float:
    """Of the top channels of every head by one score, the share that the other puts there too."""
    same = total = 0
    for layer, score in first.items():
        count = max(1, round(share * score.shape[1]))
        tops = [np.argsort(-each, axis=1, kind="stable")[:, :count] for each in (score, second[layer])]
        same += sum(len(np.intersect1d(a, b)) for a, b in zip(*tops, strict=True))
        total += count * len(score)
    return same / total


def key_outliers(
    checkpoint: DenseCheckpoint, *, share: float, low: float, high: float, seed: int
) -> EquivalentTransform:
    """Outliers that leave the function alone, for models that have none: that share of the channel pairs of every KV head has keys
    that are ``low`` to ``high`` times as large, and queries that are as much smaller."""
    rng, config, steps = np.random.default_rng(seed), checkpoint.config, []
    half = config.head_dim // 2
    count = max(1, round(share * half))
    for layer in range(config.num_hidden_layers):
        factors = np.ones((config.num_key_value_heads, half))
        for head in factors:
            head[rng.choice(half, count, replace=False)] = rng.uniform(low, high, count)
        if f"model.layers.{layer}.self_attn.k_norm.weight" in checkpoint.tensors:
            factors[:] = factors[0]
        steps.append(Scale(layer, "q-k", np.concatenate([factors, factors], axis=1)))
    return EquivalentTransform("key-outliers", tuple(steps))
