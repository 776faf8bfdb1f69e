# SPDX-License-Identifier: Apache-2.0
"""Building blocks whose bits do not depend on an element's place in a tensor.

Torch's exponential differs in the last bit between its vector code and the scalar code of a tail, and its sums depend on shape.
Single additions, multiplications and divisions are rounded correctly everywhere, so both are built from those.
"""

from __future__ import annotations

import ctypes
import math
from typing import Any

import torch
from torch import Tensor

_POLYNOMIAL = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)

_TANH_POLYNOMIAL = (-5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1)


def exp(x: Tensor) -> Tensor:
    """e^x in fp32 with a relative error of some 3e-7: 0 below -87, infinity from 88.72, NaN for NaN (as in native/kernels/vec.h)."""
    safe = x.clamp(-87.0, 88.72)
    n = (safe * 1.4426950408889634).round()
    r = (safe - n * 0.693359375) - n * -2.12194440e-4
    p = torch.full_like(r, _POLYNOMIAL[0])
    for coefficient in _POLYNOMIAL[1:]:
        p = p * r + coefficient
    p = p * (r * r) + r + 1.0
    half = (n * 0.5).round()
    result = p * _power_of_two(half) * _power_of_two(n - half)
    result = torch.where(x < -87.0, torch.zeros_like(x), result)
    result = torch.where(x >= 88.72, torch.full_like(x, torch.inf), result)
    return torch.where(x.isnan(), x, result)


def tanh(x: Tensor) -> Tensor:
    """tanh x in fp32 with a relative error of some 3e-7 (as in native/kernels/vec.h)."""
    square = x * x
    p = torch.full_like(x, _TANH_POLYNOMIAL[0])
    for coefficient in _TANH_POLYNOMIAL[1:]:
        p = p * square + coefficient
    magnitude = x.abs()
    large = 1.0 - 2.0 / (exp(magnitude + magnitude) + 1.0)
    return torch.where(magnitude < 0.625, p * square * x + x, torch.where(x < 0.0, -large, large))


def _power_of_two(n: Tensor) -> Tensor:
    exponent = n.nan_to_num(0.0).to(torch.int32) + 127
    return (exponent << 23).view(torch.float32)


def tree_sum(x: Tensor) -> Tensor:
    """Sum over the last dimension by halving, so that the order depends on its length only; keeps the dimension (size 1)."""
    length = x.shape[-1]
    padded = 1 << (length - 1).bit_length()
    if padded != length:
        x = torch.nn.functional.pad(x, (0, padded - length))
    while x.shape[-1] > 1:
        half = x.shape[-1] // 2
        x = x[..., :half] + x[..., half:]
    return x


def rms_norm(x: Tensor, weight: Tensor, eps: float, weight_offset: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * (weight + weight_offset) over the last dimension."""
    mean = tree_sum(x * x) / x.shape[-1]
    return x * (1.0 / (mean + eps).sqrt()) * (weight + weight_offset)


def at_address(address: int, shape: tuple[int, ...], code: int) -> Tensor:
    """A tensor over memory that somebody else owns; ``code`` as in `kernels.arrays.FLOAT_CODES`."""
    dtype = (torch.float32, torch.bfloat16, torch.float16)[code]
    num_bytes = math.prod(shape) * dtype.itemsize
    return torch.frombuffer((ctypes.c_uint8 * num_bytes).from_address(address), dtype=dtype).view(shape)


def assembled(address: int, shape: tuple[int, int], code: int, index_address: int, shards: int) -> Tensor:
    """A matrix in fp32: as it lies there, or its rows made of shards of a pool (see `KernelOps.lora`)."""
    if not index_address:
        return at_address(address, shape, code).float()
    numbers = (ctypes.c_int32 * (shape[0] * shards)).from_address(index_address)
    index = torch.frombuffer(numbers, dtype=torch.int32).long()
    pool = at_address(address, (int(index.max()) + 1, shape[1] // shards), code)
    return pool[index].float().view(shape)


def as_tensor(array: Any) -> Tensor:
    """A tensor on the same memory; numpy's uint16 becomes bf16."""
    if isinstance(array, Tensor):
        return array
    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if tensor.dtype == torch.uint16 else tensor
