# SPDX-License-Identifier: Apache-2.0
"""Quantized panels in torch: the same integers as the native kernels, and the same order of groups.

A record holds sixteen rows' scales (fp16) and then their blocks' bytes, four by four: byte ``4 j + c`` of row ``n`` lies at
``32 + 64 j + 4 n + c`` (native/kernels/qlinear/dots.h). Blocks are ggml's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ziggurat.kernels.arrays import block_bytes, check_blocks
from ziggurat.programs.formats import PANEL_WIDTH, Q4_0, FormatSpec

_SMALLEST = 2.0**-100
"""A group whose largest value is below it counts as zeros: one over its scale could be infinite."""


def quantize(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Activations [T, K] as integers (in fp32) [K / 32, T, 32] and scales [K / 32, T, 1].

    The scale is max / 127, rounding goes to nearest even. A group with NaN or infinity has zeros and the scale NaN.
    """
    groups = rows.unflatten(1, (-1, Q4_0.block_values)).transpose(0, 1)
    peak = groups.abs().amax(-1, keepdim=True)
    is_finite = peak.isfinite()
    is_zero = ~is_finite | (peak < _SMALLEST)
    inverse = torch.where(is_zero, 0.0, 127.0 / torch.where(is_zero, 1.0, peak))
    integers = torch.where(is_zero, 0.0, (groups * inverse).round())
    scales = torch.where(is_finite, torch.where(is_zero, 0.0, peak / 127.0), torch.nan)
    return integers, scales


def product(quantized: tuple[Tensor, Tensor], spec: FormatSpec, panels: Tensor) -> Tensor:
    """Quantized rows times the matrix of some panels: [T, P * 16].

    Products of a group are integers below 2**24, so fp32 has them exactly in whatever order BLAS adds; what is rounded is element by
    element. Hence no row depends on another.
    """
    integers, scales = quantized
    weights, weight_scales = _weights(panels, spec)
    total = torch.zeros(integers.shape[1], weights.shape[1])
    for x, x_scale, w, w_scale in zip(integers, scales, weights, weight_scales, strict=True):
        total = total + (x @ w.T) * (x_scale * w_scale)
    return total


def embed(ids: Tensor, panels: Tensor, out: Tensor, spec: FormatSpec, scale: float) -> None:
    """Rows of quantized panels, decoded and scaled."""
    picked = torch.empty(len(ids), panels.shape[1] * block_bytes(spec), dtype=torch.uint8)
    for target, row in zip(picked, ids.tolist(), strict=True):
        unpack(panels[row // PANEL_WIDTH, None], target[None], spec, row % PANEL_WIDTH)
    out.copy_(decode(picked, spec) * scale)


def encode(values: Tensor, spec: FormatSpec) -> Tensor:
    """Values [.., D] as blocks [.., bytes], as the native kernels write keys and values. NaN or infinity makes the scale NaN."""
    groups = values.unflatten(-1, (-1, spec.block_values))
    peak = groups.abs().amax(-1, keepdim=True)
    is_finite = peak.isfinite()
    is_zero = ~is_finite | (peak < _SMALLEST)
    if spec == Q4_0:
        # The first value of largest magnitude becomes -8.
        extreme = groups.gather(-1, (groups.abs() == peak).to(torch.uint8).argmax(-1, keepdim=True))
        scale, inverse = extreme / -8.0, -8.0 / torch.where(is_zero, 1.0, extreme)
        integers = (
            torch.where(is_zero, 8.0, (groups * inverse + 8.5).trunc().clamp(0, 15)).nan_to_num(8.0).to(torch.uint8)
        )
        half = spec.block_values // 2
        stored = integers[..., :half] | integers[..., half:] << 4
    else:
        scale, inverse = peak / 127.0, 127.0 / torch.where(is_zero, 1.0, peak)
        integers = torch.where(is_zero, 0.0, (groups * inverse).round())
        stored = integers.nan_to_num(0.0).to(torch.int8).view(torch.uint8)
    scale = torch.where(is_finite, torch.where(is_zero, 0.0, scale), torch.nan)
    return torch.cat((scale.to(torch.float16).view(torch.uint8), stored), -1).flatten(-2)


def decode(stored: Tensor, spec: FormatSpec) -> Tensor:
    """The inverse of `encode`, in fp32."""
    blocks = stored.unflatten(-1, (-1, block_bytes(spec)))
    scales = blocks[..., :2].contiguous().view(torch.float16).float()
    values: Tensor = scales * _integers(blocks[..., 2:], spec)
    return values.flatten(-2)


def pack(rows: Tensor, panels: Tensor, spec: FormatSpec, first_row: int) -> None:
    """Rows of blocks into panels, as rows ``first_row`` and on."""
    num_rows, num_blocks = check_blocks(rows, panels, spec, first_row)
    index = torch.arange(first_row, first_row + num_rows)
    blocks = rows.view(num_rows, num_blocks, -1)
    scales, quads = _parts(panels)
    scales[index // PANEL_WIDTH, :, index % PANEL_WIDTH] = blocks[:, :, :2]
    quads[index // PANEL_WIDTH, :, :, index % PANEL_WIDTH] = blocks[:, :, 2:].unflatten(2, (-1, 4))


def unpack(panels: Tensor, rows: Tensor, spec: FormatSpec, first_row: int) -> None:
    """The inverse of `pack`."""
    num_rows, num_blocks = check_blocks(rows, panels, spec, first_row)
    index = torch.arange(first_row, first_row + num_rows)
    blocks = rows.view(num_rows, num_blocks, -1)
    scales, quads = _parts(panels)
    blocks[:, :, :2] = scales[index // PANEL_WIDTH, :, index % PANEL_WIDTH]
    blocks[:, :, 2:] = quads[index // PANEL_WIDTH, :, :, index % PANEL_WIDTH].flatten(2)


def _parts(panels: Tensor) -> tuple[Tensor, Tensor]:
    """Views of panels: scales [P, K / 32, 16, 2], quads of bytes [P, K / 32, quads, 16, 4]."""
    split = 2 * PANEL_WIDTH
    scales = panels[:, :, :split].unflatten(2, (PANEL_WIDTH, 2))
    return scales, panels[:, :, split:].unflatten(2, (-1, PANEL_WIDTH, 4))


def _weights(panels: Tensor, spec: FormatSpec) -> tuple[Tensor, Tensor]:
    """Integers (in fp32) [K / 32, P * 16, 32] and scales [K / 32, P * 16]."""
    scales, quads = _parts(panels)
    by_row = quads.permute(1, 0, 3, 2, 4).flatten(1, 2).flatten(2)
    row_scales = scales.contiguous().view(torch.float16)[..., 0].permute(1, 0, 2).flatten(1).float()
    return _integers(by_row, spec), row_scales


def _integers(stored: Tensor, spec: FormatSpec) -> Tensor:
    """What the bytes of blocks (without scales) mean, in fp32."""
    if spec == Q4_0:
        return torch.cat((stored & 15, stored >> 4), -1).float() - 8.0
    return stored.contiguous().view(torch.int8).float()
