# SPDX-License-Identifier: Apache-2.0
"""Weights into one packed arena, as the Plan says, with one bounded staging buffer beside it.

::

    safetensors file --pread--> staging (rows, storage type of the file) --convert, pack--> arena (panels, the plan's type)

Nothing is mapped, so nothing has to be given back: the peak is the packed weights plus one staging buffer and its conversion.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ziggurat.errors import ModelError
from ziggurat.kernels import PANEL_WIDTH, KernelOps
from ziggurat.memory.arena import Arena
from ziggurat.programs.checkpoint import TensorEntry
from ziggurat.programs.formats import FP32, FormatSpec
from ziggurat.programs.plan import PackedWeight, Plan
from ziggurat.units import MIB, ceil_div

STAGING_BYTES = 32 * MIB
"""Upper bound of one slice of a tensor on its way into the arena; its conversion to another type takes as much again at most twice."""

Progress = Callable[[str, int, int], None]
"""(what is being done, bytes done, bytes in total)."""

_LOG = logging.getLogger(__name__)
# Standard deviation of dummy biases; matrices take 1 / sqrt(in_features), which keeps activations near 1.
_DUMMY_BIAS_STD = 0.02


def torch_dtype(fmt: FormatSpec) -> torch.dtype:
    """The torch dtype of a storage format."""
    dtype = getattr(torch, fmt.torch)
    assert isinstance(dtype, torch.dtype)
    return dtype


def arena_view(arena: Arena, offset: int, num_bytes: int, dtype: torch.dtype) -> Tensor:
    """A flat tensor over bytes of an arena. It must not be used after the arena has been closed (it reads zeros then)."""
    whole = torch.frombuffer(arena.buffer, dtype=torch.uint8)
    return whole[offset : offset + num_bytes].view(dtype)


def weight_views(plan: Plan, arena: Arena) -> dict[str, Tensor]:
    """Every packed weight by name: panels [P, K, 16] in the storage type, vectors [N] in fp32."""
    views = {}
    for name, weight in plan.weights.items():
        flat = arena_view(arena, weight.offset, weight.num_bytes, torch_dtype(weight.format))
        if weight.layout == "panels":
            num_panels = ceil_div(weight.out_features, PANEL_WIDTH)
            flat = flat.view(num_panels, weight.in_features, PANEL_WIDTH)
        views[name] = flat
    return views


def read_checkpoint(
    plan: Plan,
    views: Mapping[str, Tensor],
    entries: Mapping[str, TensorEntry],
    ops: KernelOps,
    *,
    progress: Progress | None = None,
) -> None:
    """Fills the packed weights from a checkpoint.

    Args:
        views: from `weight_views`.
        entries: the checkpoint's tensors, checked against the Program (`programs.checkpoint.match_program`).
        ops: packs rows into panels.

    Raises:
        ModelError: a file is truncated or cannot be read, or a value does not fit the storage type asked for.
    """
    total = sum(entries[source].num_bytes for weight in plan.weights.values() for source, _ in weight.sources)
    with _Reader() as reader:
        done = 0
        for weight in plan.weights.values():
            first_row = 0
            for source, num_rows in weight.sources:
                for start, rows in reader.slices(source, entries[source]):
                    reader.check(source, rows)
                    converted = _converted(source, rows, weight.format)
                    _put(weight, views[weight.name], first_row + start, converted, ops)
                    done += rows.nbytes
                    if progress is not None:
                        progress("loading weights", done, total)
                first_row += num_rows
    if reader.non_finite:
        first = reader.non_finite[0]
        _LOG.warning(
            "%d tensors hold NaN or infinity, first %r: expect failing requests", len(reader.non_finite), first
        )


def fill_random(
    plan: Plan, views: Mapping[str, Tensor], ops: KernelOps, *, seed: int, progress: Progress | None = None
) -> None:
    """Fills the packed weights with random numbers (``load_format="dummy"``): normal with 1 / sqrt(in_features), norms 1.

    Each checkpoint tensor depends on ``seed`` and its own name only.
    """
    total, done = plan.weight_bytes, 0
    for weight in plan.weights.values():
        first_row = 0
        for source, num_rows in weight.sources:
            for start, rows in _random_slices(source, num_rows, weight, seed):
                _put(weight, views[weight.name], first_row + start, rows.to(torch_dtype(weight.format)), ops)
            first_row += num_rows
        done += weight.num_bytes
        if progress is not None:
            progress("making random weights", done, total)


@dataclass(slots=True)
class _Reader:
    """Reads tensors slice by slice into one staging buffer."""

    non_finite: list[str] = field(default_factory=list)
    _files: ExitStack = field(default_factory=ExitStack)
    _descriptors: dict[Path, int] = field(default_factory=dict)
    _staging: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.uint8))

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()
        self._staging = torch.empty(0, dtype=torch.uint8)

    def slices(self, name: str, entry: TensorEntry) -> Iterator[tuple[int, Tensor]]:
        """(first row, rows) of a tensor in its stored type; the rows are valid until the next slice. Vectors are one column."""
        num_rows = entry.shape[0]
        columns = entry.shape[1] if len(entry.shape) == 2 else 1
        row_bytes = entry.format.num_bytes((columns,))
        step = max(PANEL_WIDTH, STAGING_BYTES // row_bytes // PANEL_WIDTH * PANEL_WIDTH)
        for start in range(0, num_rows, step):
            count = min(step, num_rows - start)
            raw = self._read(name, entry, start * row_bytes, count * row_bytes)
            yield start, raw.view(torch_dtype(entry.format)).view(count, columns)

    def _read(self, name: str, entry: TensorEntry, offset: int, num_bytes: int) -> Tensor:
        if self._staging.numel() < num_bytes:
            self._staging = torch.empty(num_bytes, dtype=torch.uint8)
        raw = self._staging[:num_bytes]
        target, done = raw.numpy().data, 0
        try:
            if entry.path not in self._descriptors:
                descriptor = os.open(entry.path, os.O_RDONLY | os.O_CLOEXEC)
                self._files.callback(os.close, descriptor)
                self._descriptors[entry.path] = descriptor
            while done < num_bytes:
                count = os.preadv(self._descriptors[entry.path], [target[done:]], entry.offset + offset + done)
                if count == 0:
                    break
                done += count
        except OSError as error:
            raise ModelError(f"{entry.path} cannot be read at tensor {name!r}: {error}") from error
        if done < num_bytes:
            raise ModelError(
                f"{entry.path} is truncated: tensor {name!r} needs {num_bytes} bytes at {entry.offset + offset}, only {done} are "
                f"there; the file changed since its header was read"
            )
        return raw

    def check(self, name: str, rows: Tensor) -> None:
        """Notes tensors with NaN or infinity."""
        if rows.numel() and not _is_finite(rows) and name not in self.non_finite[-1:]:
            self.non_finite.append(name)


def _is_finite(rows: Tensor) -> bool:
    # aminmax passes NaN on and takes one pass without temporaries.
    low, high = torch.aminmax(rows)
    return bool(torch.isfinite(low)) and bool(torch.isfinite(high))


def _converted(name: str, rows: Tensor, fmt: FormatSpec) -> Tensor:
    dtype = torch_dtype(fmt)
    if rows.dtype == dtype:
        return rows
    converted = rows.to(dtype)
    if dtype == torch.float16 and rows.numel() and _is_finite(rows) and not _is_finite(converted):
        largest = float(torch.aminmax(rows.float().abs()).max)
        raise ModelError(
            f"tensor {name!r} has values up to {largest:.3g}, float16 ends at 65504: use --dtype bfloat16 or auto"
        )
    return converted


def _put(weight: PackedWeight, view: Tensor, first_row: int, rows: Tensor, ops: KernelOps) -> None:
    if weight.layout == "vector":
        view[first_row : first_row + rows.shape[0]].copy_(rows.reshape(-1))
    else:
        ops.pack_rows(rows, view, first_row=first_row)


def _random_slices(name: str, num_rows: int, weight: PackedWeight, seed: int) -> Iterator[tuple[int, Tensor]]:
    columns = weight.in_features
    if weight.layout == "vector" and not name.endswith(".bias"):
        yield 0, torch.ones(num_rows, 1)
        return
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
    std = _DUMMY_BIAS_STD if weight.layout == "vector" else columns**-0.5
    step = max(PANEL_WIDTH, STAGING_BYTES // FP32.num_bytes((columns,)) // PANEL_WIDTH * PANEL_WIDTH)
    for start in range(0, num_rows, step):
        count = min(step, num_rows - start)
        yield start, torch.empty(count, columns).normal_(0.0, std, generator=generator)
