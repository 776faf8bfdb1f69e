# SPDX-License-Identifier: Apache-2.0
"""Torch tensors and numpy arrays seen alike: address, shape, strides and dtype, checked before an address leaves Python.

Checks raise `TypeError` or `ValueError`: a wrong shape here is a fault of the calling executor, never a user's.
"""

from __future__ import annotations

from typing import Any

from ziggurat.programs.formats import BF16, COMPUTED_BLOCKS, FP16, FP32, PANEL_WIDTH, FormatSpec, scratch_width

FLOAT_CODES = {"fp32": 0, "bf16": 1, "fp16": 2}
BLOCK_CODES = {"q8_0": 3, "q4_0": 4}
PACKED_CODES = {"kivi4": 5, "kivi2": 6}
KV_CODES = FLOAT_CODES | BLOCK_CODES | PACKED_CODES
_FORMATS = {"float32": FP32, "bfloat16": BF16, "uint16": BF16, "float16": FP16}


def dtype_name(array: Any) -> str:
    """``float32``, ``bfloat16``, ``int64`` ..: the same words for torch and numpy."""
    return str(array.dtype).removeprefix("torch.")


def address(array: Any) -> int:
    """First byte of the array's data."""
    data_ptr = getattr(array, "data_ptr", None)
    return int(data_ptr()) if data_ptr is not None else int(array.ctypes.data)


def optional_address(array: Any | None) -> int:
    """Address, or 0 for None."""
    return 0 if array is None else address(array)


def strides(array: Any) -> tuple[int, ...]:
    """Strides in elements."""
    if hasattr(array, "data_ptr"):
        return tuple(array.stride())
    return tuple(stride // array.itemsize for stride in array.strides)


def num_bytes(array: Any) -> int:
    """Bytes of the array's elements."""
    return int(array.nbytes)


def is_contiguous(array: Any) -> bool:
    """C order without gaps."""
    return bool(array.is_contiguous()) if hasattr(array, "data_ptr") else bool(array.flags.c_contiguous)


def float_format(array: Any, what: str) -> FormatSpec:
    """The storage format of weights or rows; numpy's uint16 stands for bf16."""
    spec = _FORMATS.get(dtype_name(array))
    if spec is None:
        raise TypeError(f"{what}: dtype {dtype_name(array)} is not one of {', '.join(_FORMATS)}")
    return spec


def check(array: Any, what: str, dtype: str, shape: tuple[int | None, ...]) -> None:
    """Dtype and shape (None matches any size), contiguous."""
    actual = tuple(array.shape)
    is_match = len(actual) == len(shape) and all(
        want is None or want == have for want, have in zip(shape, actual, strict=True)
    )
    if dtype_name(array) != dtype or not is_match:
        raise ValueError(f"{what}: expected {dtype} {list(shape)}, got {dtype_name(array)} {list(actual)}")
    if not is_contiguous(array):
        raise ValueError(f"{what}: must be contiguous")


def rows(array: Any, what: str, num_rows: int | None = None, width: int | None = None) -> int:
    """Check an fp32 matrix whose rows may have a stride; returns the stride in elements."""
    if dtype_name(array) != "float32" or array.ndim != 2:
        raise ValueError(f"{what}: expected float32 rows, got {dtype_name(array)} of {array.ndim} dimensions")
    have_rows, have_width = array.shape
    if (num_rows is not None and have_rows != num_rows) or (width is not None and have_width != width):
        raise ValueError(f"{what}: expected [{num_rows}, {width}], got [{have_rows}, {have_width}]")
    row_stride, step = strides(array)
    if step != 1 and have_width > 1:
        raise ValueError(f"{what}: the last dimension must be contiguous")
    return int(row_stride) if have_rows > 1 else int(have_width)


def block_bytes(spec: FormatSpec) -> int:
    """Bytes of one block of a quantized format."""
    return spec.num_bytes((spec.block_values,))


def block_format(panels: Any) -> FormatSpec | None:
    """The format of quantized panels, which are bytes and known by the size of a record; None for panels of plain numbers."""
    if dtype_name(panels) != "uint8" or panels.ndim != 3:
        return None
    sizes = {PANEL_WIDTH * block_bytes(spec): spec for spec in COMPUTED_BLOCKS.values()}
    spec = sizes.get(int(panels.shape[2]))
    if spec is None:
        raise ValueError(f"panels: records of {panels.shape[2]} bytes, known are {sorted(sizes)}")
    return spec


def check_blocks(rows: Any, panels: Any, spec: FormatSpec, first_row: int) -> tuple[int, int]:
    """(rows, blocks per row) of rows in a block format that fit into panels."""
    num_panels, k = panel_shape(panels)
    num_rows, num_blocks = int(rows.shape[0]), k // spec.block_values
    check(rows, "rows", "uint8", (None, num_blocks * block_bytes(spec)))
    if not 0 <= first_row <= first_row + num_rows <= num_panels * PANEL_WIDTH:
        raise ValueError(f"{num_rows} rows from {first_row} on do not fit panels {list(panels.shape)}")
    return num_rows, num_blocks


def check_scratch(scratch: Any | None, num_rows: int, k: int) -> None:
    """A quantized linear brings space for its quantized activations."""
    if scratch is None:
        raise ValueError(f"scratch: quantized panels need fp32 [{num_rows}, {scratch_width(k)}]")
    check(scratch, "scratch", "float32", (num_rows, scratch_width(k)))


def panel_shape(panels: Any) -> tuple[int, int]:
    """(panels, K) of packed weights [P, K, 16], or of quantized ones [P, K / 32, 16 * bytes of a block]."""
    spec = block_format(panels)
    if spec is not None and is_contiguous(panels):
        return int(panels.shape[0]), int(panels.shape[1]) * spec.block_values
    if panels.ndim != 3 or panels.shape[2] != PANEL_WIDTH or not is_contiguous(panels):
        raise ValueError(f"panels: expected contiguous [P, K, {PANEL_WIDTH}], got {list(panels.shape)}")
    return int(panels.shape[0]), int(panels.shape[1])


def grouped_shape(
    x: Any, panels: Any, routing: Any, out: Any, num_experts: int, top_k: int, is_routed: bool
) -> tuple[int, int, int]:
    """(tokens, K, N) of a linear with one matrix per expert, checked."""
    num_panels, k = panel_shape(panels)
    num_tokens = int(routing.shape[0])
    num_panels_each, rest = divmod(num_panels, num_experts)
    if rest:
        raise ValueError(f"{num_panels} panels do not divide among {num_experts} experts")
    rows(routing, "routing", None, 2 * top_k)
    rows(x, "x", num_tokens * top_k if is_routed else num_tokens, k)
    rows(out, "out", num_tokens * top_k, num_panels_each * PANEL_WIDTH)
    return num_tokens, k, num_panels_each * PANEL_WIDTH


def check_out_features(num_panels: int, out_features: int) -> None:
    """N must end in the last panel."""
    if not PANEL_WIDTH * (num_panels - 1) < out_features <= PANEL_WIDTH * num_panels:
        raise ValueError(f"out has {out_features} columns, {num_panels} panels hold up to {PANEL_WIDTH * num_panels}")
