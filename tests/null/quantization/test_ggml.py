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
WRITTEN = {FP32: "F32", FP16: "F16", BF16: "BF16", Q8_0: "Q8_0"}


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


@given(st.lists(st.integers(0, 0xFFFF), min_size=1, max_size=64))
def test_bf16_there_and_back_is_the_same(bits: list[int]) -> None:
    stored = np.array([bits], np.uint16)
    values = ggml.bf16_to_fp32(stored)
    back = ggml.encode(BF16, values).view(np.uint16)
    is_nan = np.isnan(values)
    assert np.array_equal(back[~is_nan], stored[~is_nan])
    assert np.isnan(ggml.bf16_to_fp32(back)[is_nan]).all()
