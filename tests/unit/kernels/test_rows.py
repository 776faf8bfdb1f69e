# SPDX-License-Identifier: Apache-2.0
"""Norms, rotary embedding with the KV write, activations, additions, block copies."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.kernels.helpers import (
    BACKENDS,
    DTYPES,
    backend,
    kv_layer,
    random,
    reference_rms_norm,
    reference_rotate,
    relative_error,
)


@pytest.mark.parametrize("name", BACKENDS)
@settings(max_examples=40)
@given(num_rows=st.integers(1, 40), k=st.integers(1, 300), offset=st.sampled_from([0.0, 1.0]), has_delta=st.booleans())
def test_rms_norm(name, num_rows, k, offset, has_delta):
    ops = backend(name)
    x, weight, delta = random(1, num_rows, k), random(2, k), random(3, num_rows, k)
    summed = x + delta if has_delta else x.clone()
    out = torch.empty_like(x)
    rows = x.clone()
    ops.rms_norm(rows, weight, out, eps=1e-5, weight_offset=offset, delta=delta if has_delta else None)
    assert torch.equal(rows, summed)
    assert relative_error(out, reference_rms_norm(summed, weight, 1e-5, offset)) < 1e-6
    last = summed[-1:].clone()
    ops.rms_norm(last, weight, last, eps=1e-5, weight_offset=offset)
    assert torch.equal(last, out[-1:])


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("kind", ["silu", "gelu_tanh"])
@settings(max_examples=30)
@given(num_rows=st.integers(1, 40), f=st.integers(1, 150))
def test_gated_activation(name, kind, num_rows, f):
    ops = backend(name)
    rows = random(4, num_rows, 2 * f) * 4.0
    out = torch.empty(num_rows, f)
    ops.gated_activation(rows, out, kind=kind)
    gate, up = rows.double().chunk(2, 1)
    act = torch.nn.functional.silu if kind == "silu" else lambda x: torch.nn.functional.gelu(x, approximate="tanh")
    # The error of a sigmoid far below one counts against the gate that it scales.
    assert bool(((out - act(gate) * up).abs() <= 1e-6 * (gate * up).abs()).all())
    single = torch.empty(1, f)
    ops.gated_activation(rows[-1:], single, kind=kind)
    assert torch.equal(single, out[-1:])


@pytest.mark.parametrize("name", BACKENDS)
def test_an_element_does_not_depend_on_its_lane(name):
    ops = backend(name)
    for width in range(1, 40):
        out = torch.empty(1, width)
        ops.gated_activation(torch.full((1, 2 * width), 0.7371), out)
        assert (out == out[0, 0]).all(), width


@pytest.mark.parametrize("name", BACKENDS)
def test_extreme_gates(name):
    gate = torch.tensor([[0.0, -1e30, 1e30, -90.0, 88.8, -88.8, torch.nan, torch.inf]])
    out = torch.empty(1, 8)
    backend(name).gated_activation(torch.cat((gate, torch.ones(1, 8)), 1), out)
    expected = torch.nn.functional.silu(gate.double())
    finite = [0, 1, 2, 3, 4, 5]
    assert torch.allclose(out[0, finite].double(), expected[0, finite], rtol=1e-6, atol=1e-30)
    assert out[0, 6].isnan()
    assert out[0, 7] == torch.inf


@pytest.mark.parametrize("name", BACKENDS)
@settings(max_examples=25)
@given(
    num_rows=st.integers(1, 20),
    heads=st.sampled_from([(1, 1), (4, 2), (6, 2)]),
    head_dim=st.sampled_from([8, 64, 80, 96, 128]),
    format_name=st.sampled_from(sorted(DTYPES)),
    has_norm=st.booleans(),
    is_partial=st.booleans(),
    block_size=st.sampled_from([1, 5, 16]),
)
def test_qkv_post(name, num_rows, heads, head_dim, format_name, has_norm, is_partial, block_size):
    ops = backend(name)
    num_heads, num_kv_heads = heads
    half = head_dim // 4 if is_partial else head_dim // 2
    qkv = random(1, num_rows, (num_heads + 2 * num_kv_heads) * head_dim)
    angles = random(2, 50, half)
    cos, sin = angles.cos(), angles.sin()
    positions = torch.randint(0, 50, (num_rows,), generator=torch.Generator().manual_seed(3))
    q_norm, k_norm = (random(4, head_dim), random(5, head_dim)) if has_norm else (None, None)
    num_blocks = -(-num_rows // block_size) + 1
    pool = torch.zeros(num_blocks, 3, 2, num_kv_heads, block_size, head_dim, dtype=DTYPES[format_name])
    kv = kv_layer(pool, format_name, block_size, num_kv_heads, head_dim, layer=2, num_layers=3)
    slots = torch.randperm(num_blocks * block_size, generator=torch.Generator().manual_seed(6))[:num_rows]
    slots[0] = -1
    norms = {"q_norm": q_norm, "k_norm": k_norm, "eps": 1e-6}
    original = qkv.clone()
    ops.qkv_post(qkv, positions=positions, slot_mapping=slots, cos=cos, sin=sin, kv=kv, num_heads=num_heads, **norms)

    parts = original.double().view(num_rows, -1, head_dim).split((num_heads, num_kv_heads, num_kv_heads), 1)
    expected = []
    for part, norm in zip(parts[:2], (q_norm, k_norm), strict=True):
        normed = part if norm is None else reference_rms_norm(part, norm, 1e-6, 0.0)
        expected.append(reference_rotate(normed, cos[positions], sin[positions]))
    actual = qkv.view(num_rows, -1, head_dim)
    assert relative_error(actual[:, : num_heads + num_kv_heads], torch.cat(expected, 1)) < 1e-6
    assert torch.equal(actual[:, num_heads + num_kv_heads :].double(), parts[2])

    stored = torch.zeros_like(pool)
    for t in range(1, num_rows):
        block, slot = divmod(int(slots[t]), block_size)
        keys = stored[block, 2, 0].view(num_kv_heads, head_dim, block_size)
        keys[:, :, slot] = actual[t, num_heads : num_heads + num_kv_heads].to(pool.dtype)
        stored[block, 2, 1, :, slot] = actual[t, num_heads + num_kv_heads :].to(pool.dtype)
    assert torch.equal(pool, stored)

    single = original[-1:].clone()
    ops.qkv_post(
        single,
        positions=positions[-1:],
        slot_mapping=torch.tensor([-1]),
        cos=cos,
        sin=sin,
        kv=kv,
        num_heads=num_heads,
        **norms,
    )
    assert torch.equal(single, qkv[-1:])


@pytest.mark.parametrize("format_name", ["bf16", "fp16"])
def test_storage_rounds_as_torch_does(format_name):
    """Ties, subnormals, overflow and NaN, for both instruction sets."""
    bits = np.random.default_rng(0).integers(0, 1 << 32, size=64 * 64, dtype=np.uint32)
    special = [0.0, -0.0, 65504.0, 65519.0, 65520.0, 1e30, 5.9e-8, 2.9e-8, 6.1e-5, 1.00390625, 1.01171875, 3e-45]
    values = torch.from_numpy(bits.view(np.float32).copy())
    values[: len(special)] = torch.tensor(special)
    rows = torch.cat((torch.zeros(64, 64), torch.zeros(64, 64), values.view(64, 64)), 1)
    pool = torch.zeros(4, 1, 2, 1, 16, 64, dtype=DTYPES[format_name])
    kv = kv_layer(pool, format_name, 16, 1, 64, layer=0, num_layers=1)
    tables = torch.ones(1, 32), torch.zeros(1, 32)
    zeros = torch.zeros(64, dtype=torch.int64)
    for name in BACKENDS:
        pool.zero_()
        backend(name).qkv_post(
            rows.clone(),
            positions=zeros,
            slot_mapping=torch.arange(64),
            cos=tables[0],
            sin=tables[1],
            kv=kv,
            num_heads=1,
        )
        stored, expected = pool[:, 0, 1, 0].reshape(-1), values.to(DTYPES[format_name])
        both = expected.isnan()
        assert torch.equal(stored.isnan(), both)
        assert torch.equal(stored[~both].view(torch.int16), expected[~both].view(torch.int16))


@pytest.mark.parametrize("name", BACKENDS)
def test_no_rows_is_no_work(name):
    ops, none = backend(name), torch.empty(0, 16)
    ops.rms_norm(none, torch.ones(16), none, eps=1e-6)
    ops.gated_activation(torch.empty(0, 32), none)
    ops.add(none, none)
    ops.copy_blocks(torch.zeros(4, 8, dtype=torch.uint8), torch.empty(0, 2, dtype=torch.int64), block_bytes=8)
    ops.embed_rows(torch.empty(0, dtype=torch.int64), torch.zeros(1, 16, 16), none)


@pytest.mark.parametrize("name", BACKENDS)
def test_add(name):
    x, delta = random(1, 13, 37), random(2, 13, 50)[:, 5:42]
    expected = x + delta
    backend(name).add(x, delta)
    assert torch.equal(x, expected)


@pytest.mark.parametrize("name", BACKENDS)
def test_copy_blocks(name):
    pool = torch.arange(8 * 24, dtype=torch.uint8).reshape(8, 24)
    expected = pool.clone()
    expected[5], expected[6] = pool[1], pool[2]
    backend(name).copy_blocks(pool, torch.tensor([[1, 5], [2, 6]]), block_bytes=24)
    assert torch.equal(pool, expected)
    with pytest.raises(ValueError, match="outside a pool of 8"):
        backend(name).copy_blocks(pool, torch.tensor([[1, 8]]), block_bytes=24)


@pytest.mark.parametrize("name", BACKENDS)
def test_numpy_arrays_work_too(name):
    ops = backend(name)
    x = np.random.default_rng(0).standard_normal((3, 16), dtype=np.float32)
    out = np.empty_like(x)
    ops.rms_norm(x, np.ones(16, dtype=np.float32), out, eps=1e-6)
    assert (
        relative_error(torch.from_numpy(out), reference_rms_norm(torch.from_numpy(x), torch.ones(16), 1e-6, 0.0)) < 1e-6
    )
    weight = random(1, 16, 16).bfloat16()
    panels = np.zeros((1, 16, 16), dtype=np.uint16)
    ops.pack_rows(weight.view(torch.int16).numpy().view(np.uint16), panels)
    ops.linear(x, panels, out)
    assert relative_error(torch.from_numpy(out), torch.from_numpy(x).double() @ weight.double().T) < 1e-5
