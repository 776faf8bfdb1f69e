# SPDX-License-Identifier: Apache-2.0
"""The numbers in an adapter's files, as the kernels want them, and what must be true of them."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from ziggurat.errors import ModelError
from ziggurat.programs.adapter import AdapterSource
from ziggurat.programs.checkpoint import TensorEntry


def check_indices(source: AdapterSource) -> None:
    """No index may point past its pool: the kernels would read there.

    Raises:
        ModelError: one does.
    """
    for tensor, update in source.updates.items():
        for index, pool in ((update.a_index, update.a), (update.b_index, update.b)):
            if index is not None:
                numbers = np.fromfile(index.path, "<i4", index.num_bytes // 4, offset=index.offset)
                if numbers.size and not 0 <= numbers.min() <= numbers.max() < pool.shape[0]:
                    raise ModelError(f"{index.path}: an index of {tensor} points outside its {pool.shape[0]} shards")


def read_bytes(entry: TensorEntry, is_transposed: bool) -> NDArray[np.uint8]:
    """The bytes of a matrix as stored, or of B [out, rank] as [rank, out].

    Raises:
        ModelError: the file has changed since its header was read, or holds NaN or infinity.
    """
    item = entry.num_bytes // int(np.prod(entry.shape))
    kind = np.dtype(f"<u{item}")
    values = np.fromfile(entry.path, kind, entry.num_bytes // item, offset=entry.offset)
    if values.nbytes < entry.num_bytes:
        raise ModelError(f"{entry.path} was cut off after it was loaded")
    stored = torch.from_numpy(values.view(f"<i{item}")).view(getattr(torch, entry.format.torch))
    if not torch.isfinite(stored).all():
        raise ModelError(f"{entry.path} holds NaN or infinity: the adapter is broken")
    matrix = values.reshape(entry.shape)
    return np.ascontiguousarray(matrix.T if is_transposed else matrix).view(np.uint8).reshape(-1)
