# SPDX-License-Identifier: Apache-2.0
"""Block floating point: bounds of the error, exact dot products, hostile values."""

from __future__ import annotations

from typing import Any

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from ziggurat.errors import ConfigError
from ziggurat.quantization.bfp import BfpSpec, dot, encode

specs = st.builds(
    BfpSpec,
    mantissa_bits=st.integers(2, 8),
    block=st.sampled_from([16, 32, 64]),
    peak=st.sampled_from(["clip", "bump", "mse"]),
)
numbers = st.floats(-(2.0**99), 2.0**99, width=32, allow_subnormal=False)
arrays = hnp.arrays(np.float32, (3, 64), elements=numbers)


@settings(max_examples=80, deadline=None)
@given(specs, arrays)
def test_error_is_bounded_and_a_second_encoding_changes_nothing(spec: BfpSpec, values: Any) -> None:
    packed = encode(values, spec)
    shown = packed.values()
    blocks = np.abs(values.reshape(3, -1, spec.block)).max(-1).astype(np.float64)
    error = np.abs(values.astype(np.float64) - shown).reshape(3, -1, spec.block).max(-1)
    p = spec.mantissa_bits
    top = 2 ** (p - 1) - 1
    assert (error[blocks > 1e-30] <= blocks[blocks > 1e-30] * (max(1 / top, 2.0 ** (2 - p)) + 1e-9)).all()
    if spec.peak == "clip":
        assert (error[blocks > 1e-30] <= blocks[blocks > 1e-30] / top * (1 + 1e-9)).all()
    assert packed.packed.nbytes == spec.num_bytes(values.size) == values.size // spec.block * (1 + p * spec.block // 8)
    assert (np.abs(packed.mantissas()) <= top).all()
    if spec.peak != "bump":
        assert (encode(shown, spec).values() == shown).all()


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 8), st.sampled_from([16, 32, 64]), st.integers(0, 2**32 - 1))
def test_dot_is_that_of_the_shown_values(bits: int, block: int, seed: int) -> None:
    a, b = np.random.default_rng(seed).standard_normal((2, 5, 64)).astype(np.float32)
    x, y = encode(a, BfpSpec(mantissa_bits=8, block=block)), encode(b, BfpSpec(mantissa_bits=bits, block=block))
    exact = (x.values().astype(np.float64) * y.values()).sum(-1)
    assert np.allclose(dot(x, y), exact, rtol=1e-6, atol=1e-6)


def test_largest_values_clip_or_take_the_next_exponent_by_squared_error() -> None:
    lone = np.zeros(16, np.float32)
    lone[0] = 1.99  # rounds to 8 quarters, and 7 is the largest mantissa of 4 bits
    shown = {peak: encode(lone, BfpSpec(block=16, peak=peak)).values()[0] for peak in ("clip", "bump", "mse")}  # type: ignore[arg-type]
    assert shown == {"clip": 1.75, "bump": 2.0, "mse": 2.0}
    crowded = np.full(16, 0.25, np.float32)
    crowded[0] = 1.99
    assert encode(crowded, BfpSpec(block=16)).values()[0] == 1.75


@pytest.mark.parametrize("size", [1e-30, 1e30, 1e-45, 3.4e38])
def test_extreme_and_hostile_blocks(size: float) -> None:
    values = np.full((1, 64), size, np.float32)
    values[0, 16:32] = 0
    values[0, 32] = np.nan
    values[0, 48] = np.inf
    packed = encode(values, BfpSpec(mantissa_bits=8, block=16))
    shown = packed.values()
    assert packed.packed[0, 1].tolist() == [0] * 17 and (shown[0, 16:32] == 0).all()
    assert np.isnan(shown[0, 32:]).all()
    assert np.allclose(shown[0, :16], size, rtol=0.02 if size > 1e-37 else 1)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="80 values .* blocks of 32"):
        encode(np.zeros(80), BfpSpec(block=32))
    with pytest.raises(ConfigError, match="2 to 8 bits, not 9"):
        BfpSpec(mantissa_bits=9)
    with pytest.raises(ConfigError, match="blocks of 16"):
        dot(encode(np.zeros(32), BfpSpec(block=16)), encode(np.zeros(32), BfpSpec(block=32)))
