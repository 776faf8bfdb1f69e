# SPDX-License-Identifier: Apache-2.0
"""Mixed blocks: packing and back, integer products against int64, and outliers that end in few blocks."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from tests.null.quantization.test_transforms import IDS, model
from ziggurat.errors import ConfigError
from ziggurat.quantization.dense import ReferenceDecoder
from ziggurat.quantization.fmpq import (
    ChannelPlan,
    block_products,
    collect_absmax,
    fold_order,
    norm_outliers,
    pack_activations,
    pack_weights,
    plan_channels,
    shown_weights,
    w4ax,
)

masks = st.lists(st.booleans(), min_size=3, max_size=3).map(lambda each: np.array(each, dtype=np.bool_))


@settings(max_examples=60, deadline=None)
@given(masks, st.integers(0, 2**32 - 1))
def test_products_are_those_of_int64_and_masks_go_there_and_back(is_wide: np.ndarray, seed: int) -> None:
    rng = np.random.default_rng(seed)
    plan = ChannelPlan(block=16, order=rng.permutation(48), is_wide=is_wide)
    x, weight = rng.standard_normal((5, 48)) * 9, rng.standard_normal((7, 48))
    x[0] = 0
    packed, weights = pack_activations(x, plan), pack_weights(weight, plan)
    a, w = packed.integers().astype(np.int64), weights.codes.astype(np.int64) - 8
    assert (block_products(packed, weights) == np.einsum("tbk,obk->tob", a, w)).all()
    limits = np.where(is_wide, 127, 7)[None, :, None]
    assert (np.abs(a) <= limits).all() and (np.abs(a).max(-1)[1:] == limits[..., 0]).all()
    assert packed.nibbles.nbytes == 5 * 8 * (~is_wide).sum() and packed.codes.nbytes == 5 * 16 * is_wide.sum()
    shown = np.empty_like(x)
    shown[:, plan.order] = (a * packed.scales[..., None]).reshape(x.shape)
    assert (np.abs(shown - x)[:, plan.order].reshape(5, 3, 16).max(-1) <= packed.scales * 0.501 + 1e-6).all()
    assert np.allclose(w4ax(packed, weights), shown @ shown_weights(weights, plan).T, rtol=1e-4, atol=1e-3)
    assert (w4ax(packed, weights)[0] == 0).all()


def test_permutation_puts_outliers_into_one_block() -> None:
    absmax = np.ones(128)
    absmax[[3, 40, 70, 100]] = 50
    assert plan_channels(absmax, block=32).is_wide.tolist() == [True, False, False, False]
    assert plan_channels(absmax, block=32, permute=False).wide_share == 1
    assert plan_channels(np.zeros(128), block=32).wide_share == 0
    with pytest.raises(ConfigError, match="48 channels .* blocks of 128"):
        plan_channels(np.ones(48))


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_outliers_and_folded_orders_leave_the_function_alone(kv_heads: int) -> None:
    before = model(kv_heads)
    loud = norm_outliers(before, share=0.05, seed=3).fold(before)
    absmax = collect_absmax(loud, [IDS])
    assert len(absmax) == 7 * before.config.num_hidden_layers
    quiet = collect_absmax(before, [IDS])
    assert any((absmax[name] > 15 * quiet[name]).any() for name in absmax)
    folded = fold_order(loud, absmax).fold(loud)
    assert np.allclose(ReferenceDecoder(folded).logits(IDS), ReferenceDecoder(before).logits(IDS), rtol=1e-9, atol=1e-9)
    name = "model.layers.0.mlp.down_proj"
    assert (np.diff(collect_absmax(folded, [IDS])[name]) <= 1e-12).all()
    with pytest.raises(ConfigError, match="without data"):
        collect_absmax(before, [])
