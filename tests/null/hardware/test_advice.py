# SPDX-License-Identifier: Apache-2.0
"""Advice about devices that are not here: closed forms, brute force, and what must rise with what."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ziggurat.errors import ConfigError
from ziggurat.hardware.advice import MEMORY_SHARE, Wanted, advise, cheapest, first_token_ms, roofline, token_ms
from ziggurat.hardware.compiled import Layout, compile_cost
from ziggurat.hardware.models import find_model
from ziggurat.hardware.specs import devices, find_device

SHAPES = st.sampled_from(["llama2-7b", "llama2-13b", "llama2-70b"])
DEVICES = st.sampled_from(["a100-80g-sxm", "a40", "h100"])
RANKS = st.sampled_from([1, 2, 4, 8])


@given(shape=SHAPES, device=DEVICES, ranks=RANKS, context=st.integers(16, 8192), limit=st.floats(1, 400))
def test_the_largest_batch_is_the_one_that_brute_force_finds(
    shape: str, device: str, ranks: int, context: int, limit: float
) -> None:
    model = find_model(shape)
    found = advise(model, device, ranks, Wanted(context=context, max_tpot_ms=limit))
    memory = find_device(device).value("memory_gb") * 1e9 * ranks * MEMORY_SHARE
    expected = max(0, int((memory - model.weight_bytes) / model.kv_bytes_per_token)) // context
    assert found["fits"] == (expected > 0)
    if not found["fits"]:
        assert "best" not in found
        return
    assert found["max_num_seqs"] == expected
    cost = compile_cost(model, device, Layout(tensor_parallel=ranks))
    if found["best"] is None:
        assert token_ms(cost, 1, context) > limit and found["misses"]
        return
    batch = found["best"]["batch"]
    assert token_ms(cost, batch, context) <= limit
    assert batch == expected or token_ms(cost, batch + 1, context) > limit
    assert found["best"]["tokens_per_s"] == pytest.approx(1000 * batch / token_ms(cost, batch, context), rel=1e-3)


@given(shape=SHAPES, device=DEVICES, ranks=RANKS)
def test_more_work_takes_longer(shape: str, device: str, ranks: int) -> None:
    cost = compile_cost(find_model(shape), device, Layout(tensor_parallel=ranks))
    prompts = [first_token_ms(cost, tokens) for tokens in (64, 256, 1024, 4096)]
    assert prompts == sorted(prompts)
    for context in (128, 4096):
        steps = [token_ms(cost, batch, context) for batch in (1, 4, 16, 64, 256)]
        assert steps == sorted(steps)
    assert token_ms(cost, 32, 8192) > token_ms(cost, 32, 1024)


def test_price_and_energy_are_those_of_the_devices() -> None:
    wanted = Wanted(context=1024, price_per_hour=(("a100-80g-sxm", 2.0),))
    found = advise(find_model("llama2-7b"), "a100", 2, wanted)
    per_s = found["best"]["tokens_per_s"]
    assert found["best"]["price_per_million_tokens"] == pytest.approx(2 * 2.0 / 3600 / per_s * 1e6, rel=1e-3)
    assert found["best"]["kwh_per_million_tokens"] == pytest.approx(2 * 400 / per_s * 1e6 / 3.6e6, rel=1e-3)
    assert advise(find_model("llama2-7b"), "h100", 1, wanted)["best"]["price_per_million_tokens"] is None


def test_the_cheapest_meets_the_limits() -> None:
    model = find_model("llama2-70b")
    wanted = Wanted(context=1024, max_tpot_ms=60.0, price_per_hour=(("a100-80g-sxm", 2.0), ("a40", 0.5)))
    rows = [advise(model, device, ranks, wanted) for device in ("a100", "a40") for ranks in (1, 2, 4, 8)]
    best = cheapest(rows)
    assert best is not None and best["best"]["tpot_ms"] <= 60.0
    prices = [row["best"]["price_per_million_tokens"] for row in rows if row["fits"] and row["best"]]
    assert best["best"]["price_per_million_tokens"] == min(prices)
    assert cheapest([row for row in rows if not row["fits"]]) is None
    plain = [advise(model, "a100", ranks, Wanted(context=1024)) for ranks in (8, 4)]
    assert cheapest(plain) is plain[1], "without prices, fewest devices"


def test_a_layer_has_the_work_of_its_matrices() -> None:
    model = find_model("llama2-7b")
    rows = roofline(model, "a100", 1, 256)
    gemms = [row for row in rows if row["op_class"] == "gemm"]
    assert sum(row["flops"] for row in gemms) == 2 * 256 * model.num_layer_weights
    assert {row["op"] for row in gemms} == {"qkv", "out", "up", "down"}
    assert all(row["bound"] == "compute" for row in roofline(model, "a100", 1, 4096) if row["op_class"] == "gemm")
    assert all(row["bound"] == "memory" for row in roofline(model, "a100", 1, 1))


def test_every_device_can_be_asked_and_nonsense_is_named() -> None:
    for spec in devices():
        if {"memory_gb", "fp16_tflops", "bandwidth_gb_s"} <= set(spec.constants):
            assert advise(find_model("llama2-7b"), spec.name, 1, Wanted(context=64))["device"] == spec.name
    with pytest.raises(ConfigError, match="context must be above 0, got 0"):
        Wanted(context=0)
    with pytest.raises(ConfigError, match="price of a40 must be above 0"):
        Wanted(price_per_hour=(("a40", -1.0),))
    with pytest.raises(ConfigError, match="does not divide the 32 heads"):
        advise(find_model("llama2-7b"), "a100", 3, Wanted())
