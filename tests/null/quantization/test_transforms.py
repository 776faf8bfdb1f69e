# SPDX-License-Identifier: Apache-2.0
"""Rewrites leave the function alone on every variant of the architecture, can be taken back, and refuse what cannot be folded."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from ziggurat.errors import ConfigError, TransformAlreadyApplied, UnsupportedFeature
from ziggurat.quantization.dense import DenseCheckpoint, ReferenceDecoder, dense_checkpoint
from ziggurat.quantization.ksort import ORDER_RULES, agreement, key_outliers, ksort_by, norm_scores
from ziggurat.quantization.transforms import EquivalentTransform, Permute, Scale, check_belongs

HIDDEN, FEED, HEADS, DIM, LAYERS = 24, 40, 4, 8, 2
IDS = np.array([3, 1, 4, 1, 5, 9, 2, 6])


def model(kv_heads: int = 2, *, bias: bool = False, norms: bool = False, norm_width: int = DIM) -> DenseCheckpoint:
    rng = np.random.default_rng(5)
    shapes = {"model.embed_tokens.weight": (16, HIDDEN), "model.norm.weight": (HIDDEN,), "lm_head.weight": (16, HIDDEN)}
    widths = {"q": HEADS * DIM, "k": kv_heads * DIM, "v": kv_heads * DIM}
    for layer in range(LAYERS):
        p = f"model.layers.{layer}."
        shapes |= {p + name + ".weight": (HIDDEN,) for name in ("input_layernorm", "post_attention_layernorm")}
        shapes |= {f"{p}self_attn.{c}_proj.weight": (n, HIDDEN) for c, n in widths.items()}
        shapes |= {f"{p}self_attn.{c}_proj.bias": (n,) for c, n in widths.items() if bias}
        shapes |= {f"{p}self_attn.{c}_norm.weight": (norm_width,) for c in "qk" if norms}
        shapes |= {p + "self_attn.o_proj.weight": (HIDDEN, HEADS * DIM), p + "mlp.down_proj.weight": (HIDDEN, FEED)}
        shapes |= {f"{p}mlp.{c}_proj.weight": (FEED, HIDDEN) for c in ("gate", "up")}
    tensors = {name: rng.standard_normal(shape) * 0.3 for name, shape in shapes.items()}
    raw = {
        "architectures": ["Qwen3ForCausalLM" if norms else "LlamaForCausalLM"],
        "vocab_size": 16,
        "hidden_size": HIDDEN,
        "intermediate_size": FEED,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": kv_heads,
        "head_dim": DIM,
    }
    return dense_checkpoint(raw, tensors)


VARIANTS = [(kv, bias, norms) for kv in (1, 2, 4) for bias in (False, True) for norms in (False, True)]


def random_transform(checkpoint: DenseCheckpoint, seed: int, *, shared: bool) -> EquivalentTransform:
    """Every edge that can be folded, in a random succession."""
    rng, kv_heads = np.random.default_rng(seed), checkpoint.config.num_key_value_heads
    steps: list[Any] = []
    for layer in range(LAYERS):
        pairs = 2.0 ** rng.integers(-3, 4, (kv_heads, DIM // 2))
        order = rng.permuted(np.tile(np.arange(DIM), (kv_heads, 1)), axis=1)
        if shared:
            pairs[:], order[:] = pairs[0], order[0]
        steps += [
            Scale(layer, "norm-qkv", rng.uniform(0.1, 9, HIDDEN)),
            Scale(layer, "norm-mlp", rng.uniform(0.1, 9, HIDDEN)),
            Scale(layer, "up-down", rng.uniform(0.1, 9, FEED)),
            Permute(layer, "up-down", rng.permutation(FEED)),
            Permute(layer, "v-o", rng.permuted(np.tile(np.arange(DIM), (kv_heads, 1)), axis=1)),
            Scale(layer, "v-o", rng.uniform(0.1, 9, (kv_heads, DIM))),
            Scale(layer, "q-k", np.concatenate([pairs, pairs], axis=1)),
            Permute(layer, "q-k", order),
        ]
    return EquivalentTransform("test", tuple(steps))


@pytest.mark.parametrize(("kv_heads", "bias", "norms"), VARIANTS)
@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_function_stays_and_the_inverse_gives_the_weights_back(
    kv_heads: int, bias: bool, norms: bool, seed: int
) -> None:
    before = model(kv_heads, bias=bias, norms=norms)
    transform = random_transform(before, seed, shared=norms)
    after = transform.fold(before)
    assert np.allclose(ReferenceDecoder(after).logits(IDS), ReferenceDecoder(before).logits(IDS), rtol=1e-9, atol=1e-9)
    assert any(not np.array_equal(after.tensors[name], before.tensors[name]) for name in before.tensors)
    back = transform.inverse().fold(after)
    assert back.orders == {} and back.applied == ()
    assert all(np.allclose(back.tensors[name], before.tensors[name], rtol=1e-12) for name in before.tensors)


@pytest.mark.parametrize(("kv_heads", "bias", "norms"), VARIANTS)
@pytest.mark.parametrize("rule", ORDER_RULES)
def test_ksort_is_exact_after_outliers_too(kv_heads: int, bias: bool, norms: bool, rule: Any) -> None:
    before = model(kv_heads, bias=bias, norms=norms)
    loud = key_outliers(before, share=0.25, low=8, high=16, seed=2).fold(before)
    after = ksort_by(loud, rule, prompts=[IDS], seed=1).fold(loud)
    assert np.allclose(ReferenceDecoder(after).logits(IDS), ReferenceDecoder(before).logits(IDS), rtol=1e-9, atol=1e-9)
    if rule == "norm" and not norms:
        assert all((np.diff(score, axis=1) <= 1e-12).all() for score in norm_scores(after).values())


def test_order_alone_would_change_the_function() -> None:
    """The check above can fail: rows of k that move without those of q give other logits."""
    before = model()
    after = ksort_by(before, "random").fold(before)
    name = "model.layers.0.self_attn.q_proj.weight"
    broken = after.with_tensors({name: before.tensors[name]})
    assert not np.allclose(ReferenceDecoder(broken).logits(IDS), ReferenceDecoder(before).logits(IDS), rtol=1e-3)


def test_a_name_is_applied_once() -> None:
    before = model()
    after = ksort_by(before, "norm").fold(before)
    with pytest.raises(TransformAlreadyApplied, match="ksort:"):
        ksort_by(after, "norm").fold(after)
    with pytest.raises(ConfigError, match="another order"):
        check_belongs(after.applied, before.applied, "the adapter")
    check_belongs(after.applied, after.applied, "the adapter")


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_fingerprints_tell_transforms_apart(a: int, b: int) -> None:
    first, second = (random_transform(model(), seed, shared=False) for seed in (a, b))
    assert (first.fingerprint() == second.fingerprint()) == (a == b)


def test_what_cannot_be_folded_is_refused() -> None:
    plain, normed = model(), model(norms=True)
    order = np.tile(np.arange(DIM), (2, 1))
    order[1] = order[1, ::-1]

    def fold(checkpoint: DenseCheckpoint, step: Permute | Scale) -> None:
        EquivalentTransform("test", (step,)).fold(checkpoint)

    with pytest.raises(UnsupportedFeature, match="residual stream"):
        fold(plain, Permute(0, "norm-qkv", np.arange(HIDDEN)))
    with pytest.raises(UnsupportedFeature, match="same order"):
        fold(normed, Permute(0, "q-k", order))
    with pytest.raises(UnsupportedFeature, match="spans 32 channels"):
        fold(model(norms=True, norm_width=32), Permute(0, "q-k", order))
    with pytest.raises(ConfigError, match="cannot leave their head"):
        fold(plain, Permute(0, "v-o", np.arange(2 * DIM)[::-1].reshape(2, DIM)))
    with pytest.raises(ConfigError, match="both of a pair"):
        fold(plain, Scale(0, "q-k", np.linspace(1, 2, 2 * DIM).reshape(2, DIM)))
    with pytest.raises(ConfigError, match="above zero"):
        fold(plain, Scale(0, "up-down", np.zeros(FEED)))
    with pytest.raises(ConfigError, match="layer 7 of a model with 2"):
        fold(plain, Permute(7, "up-down", np.arange(FEED)))
    with pytest.raises(ConfigError, match="without data"):
        ksort_by(plain, "calibrated")
    with pytest.raises(UnsupportedFeature, match="Gemma2ForCausalLM"):
        dense_checkpoint({**plain.raw, "architectures": ["Gemma2ForCausalLM"]}, plain.tensors)


def test_agreement_counts_common_tops() -> None:
    scores = {0: np.array([[4.0, 3, 2, 1]])}
    assert agreement(scores, scores, 0.5) == 1 and agreement(scores, {0: -scores[0]}, 0.5) == 0
