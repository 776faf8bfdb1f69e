# SPDX-License-Identifier: Apache-2.0
"""ggml's formats against the `gguf` package: the same bits, both ways."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ziggurat.programs.formats import BF16, FP16, FP32, Q4_0, Q4_K, Q6_K, Q8_0, FormatSpec, format_by_ggml
from ziggurat.quantization import ggml

QUANTIZED = {Q8_0: "Q8_0", Q4_0: "Q4_0", Q4_K: "Q4_K", Q6_K: "Q6_K"}
WRITTEN = {FP32: "F32", FP16: "F16", BF16: "BF16", Q8_0: "Q8_0", Q4_0: "Q4_0"}


def kind(name: str) -> gguf.GGMLQuantizationType:
    return gguf.GGMLQuantizationType[name]


@pytest.mark.parametrize("spec", [*QUANTIZED, *WRITTEN], ids=lambda spec: spec.name)
def test_sizes_and_numbers_are_ggmls(spec: FormatSpec) -> None:
    name = (QUANTIZED | WRITTEN)[spec]
    block_values, block_bytes = gguf.GGML_QUANT_SIZES[kind(name)]
    assert spec.block_values == block_values and spec.num_bytes((3, 512)) == 3 * 512 // block_values * block_bytes
    assert format_by_ggml(kind(name)) == spec


@given(spec=st.sampled_from(list(QUANTIZED)), rows=st.integers(1, 5), blocks=st.integers(1, 3), data=st.data())
def test_any_bytes_are_decoded_as_there(spec: FormatSpec, rows: int, blocks: int, data: st.DataObject) -> None:
    """Random bytes: scales may be NaN, infinite or subnormal."""
    values = 256 * blocks
    packed = data.draw(hnp.arrays(np.uint8, (rows, spec.num_bytes((values,)))))
    found = np.empty((rows, values), np.float32)
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(packed, kind(QUANTIZED[spec]))
    ggml.decode(spec, packed, found)
    assert np.array_equal(found, expected, equal_nan=True)


def test_tensors_larger_than_a_group_are_decoded_whole() -> None:
    rng = np.random.default_rng(1)
    for spec, name in QUANTIZED.items():
        packed = rng.integers(0, 256, (300, spec.num_bytes((512,))), dtype=np.uint8)
        # A finite scale everywhere: f16 with the highest exponent bit off.
        packed.reshape(-1, spec.num_bytes((spec.block_values,)))[:, [1, 3, -1]] &= 0x3F
        found = np.empty((300, 512), np.float32)
        ggml.decode(spec, packed, found)
        assert np.isfinite(found).all()
        assert np.array_equal(found, gguf.quants.dequantize(packed, kind(name)))


# Where a scale is subnormal the package's own result is not defined (it converts infinities to int8).
floats = st.floats(width=32, min_value=-60000, max_value=60000).filter(lambda value: value == 0 or abs(value) > 1e-30)


@given(values=hnp.arrays(np.float32, st.tuples(st.integers(1, 4), st.sampled_from([32, 64, 256])), elements=floats))
def test_values_are_encoded_as_there(values: np.ndarray) -> None:
    for spec, name in WRITTEN.items():
        found = ggml.encode(spec, values)
        with np.errstate(all="ignore"):
            expected = gguf.quants.quantize(values, kind(name))
        assert found.view(np.uint8).tobytes() == expected.view(np.uint8).tobytes(), name


@pytest.mark.parametrize("spec", [Q8_0, Q4_0], ids=lambda spec: spec.name)
@given(data=st.data())
def test_encoding_is_off_by_half_a_step_at_most(spec: FormatSpec, data: st.DataObject) -> None:
    """A step is the scale; Q4_0's largest value on the side that -8 does not lie on is one step short of it."""
    values = data.draw(hnp.arrays(np.float32, (2, 64), elements=floats))
    found = np.empty_like(values)
    ggml.decode(spec, ggml.encode(spec, values).view(np.uint8), found)
    peak = np.abs(values.reshape(2, 2, 32)).max(axis=2, keepdims=True)
    step = peak / (127 if spec == Q8_0 else 8)
    # The scale in fp16 has eleven bits, or is subnormal with a spacing of 2**-24.
    allowed = (0.5 if spec == Q8_0 else 1.0) * step + peak * 2.0**-11 + 128 * 2.0**-25
    assert (np.abs(found - values).reshape(2, 2, 32) <= allowed * (1 + 1e-6)).all()


@pytest.mark.parametrize("spec", [Q8_0, Q4_0], ids=lambda spec: spec.name)
def test_hostile_values_encode_to_something_finite(spec: FormatSpec) -> None:
    rows = np.zeros((4, 64), np.float32)
    rows[1], rows[2], rows[3, 5] = 0.1, 1e-42, -3e-39
    found = np.empty_like(rows)
    ggml.decode(spec, ggml.encode(spec, rows).view(np.uint8), found)
    assert np.array_equal(found[0], rows[0]) and not found[2:].any()
    assert np.abs(found[1] - 0.1).max() < 0.1 * 2.0**-10


@pytest.mark.parametrize("has_ties", [False, True])
def test_tensors_larger_than_a_group_are_encoded_whole(has_ties: bool) -> None:
    values = np.random.default_rng(2).standard_normal((300, 512), np.float32)
    if has_ties:
        # Few bits: many values lie halfway between two steps.
        values = np.round(values * 8) / 8
    for spec in (Q8_0, Q4_0):
        assert np.array_equal(ggml.encode(spec, values), gguf.quants.quantize(values, kind(QUANTIZED[spec])))


@given(st.lists(st.integers(0, 0xFFFF), min_size=1, max_size=64))
def test_bf16_there_and_back_is_the_same(bits: list[int]) -> None:
    stored = np.array([bits], np.uint16)
    values = ggml.bf16_to_fp32(stored)
    back = ggml.encode(BF16, values).view(np.uint16)
    is_nan = np.isnan(values)
    assert np.array_equal(back[~is_nan], stored[~is_nan])
    assert np.isnan(ggml.bf16_to_fp32(back)[is_nan]).all()
