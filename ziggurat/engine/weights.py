# SPDX-License-Identifier: Apache-2.0
"""Weights into one packed arena, as the Plan says, through two small staging buffers.

::

    file --pread--> raw (rows, the file's type; decoded to fp32 if quantized) --convert--> rows (the plan's type) --pack--> arena (panels)
    file --pread--> rows (quantized as the plan has it) --pack--> arena (panels)

No file is mapped and nothing large comes from malloc, which would keep what it once had: the peak is the packed weights plus
`STAGING_BYTES` twice, and about once more for quantized rows and what numpy needs to decode them.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from ziggurat.engine.checkpoint_files import CheckpointFiles
from ziggurat.engine.config import EngineConfig
from ziggurat.engine.resources import Resources
from ziggurat.engine.sizing import ModelSource
from ziggurat.errors import ModelError
from ziggurat.kernels import PANEL_WIDTH, KernelOps
from ziggurat.memory.arena import Arena
from ziggurat.programs.checkpoint import TensorEntry
from ziggurat.programs.formats import FP32, FormatSpec
from ziggurat.programs.plan import PackedWeight, Plan
from ziggurat.quantization import ggml
from ziggurat.units import MIB, ceil_div

STAGING_BYTES = 8 * MIB
"""Upper bound of one slice of a tensor on its way into the arena (a panel's rows may be more)."""

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
    """Every packed weight by name: panels [P, K, 16] in the storage type, vectors [N] in fp32; quantized panels [P, K / 32, bytes]."""
    views = {}
    for name, weight in plan.weights.items():
        if weight.format.is_quantized:
            flat = arena_view(arena, weight.offset, weight.num_bytes, torch.uint8)
            num_panels, num_blocks = (
                ceil_div(weight.out_features, PANEL_WIDTH),
                weight.in_features // weight.format.block_values,
            )
            views[name] = flat.view(num_panels, num_blocks, -1)
            continue
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
    non_finite: dict[str, None] = {}
    done = 0
    with _Staging(plan) as staging, CheckpointFiles() as files:
        for weight, source, first_row, num_rows in _sources(plan):
            entry = entries[source]
            stored = _read_as(entry, weight)
            for start, count in staging.slices(weight, num_rows, stored):
                rows, is_finite = _read(files, staging, source, entry, weight, (start, count))
                if not is_finite:
                    non_finite[source] = None
                _put(weight, views[weight.name], first_row + start, rows, ops)
                done += entry.format.num_bytes((count, weight.in_features))
                if progress is not None:
                    progress("loading weights", done, total)
    if non_finite:
        first = next(iter(non_finite))
        _LOG.warning("%d tensors hold NaN or infinity, first %r: expect failing requests", len(non_finite), first)


def _read_as(entry: TensorEntry, weight: PackedWeight) -> FormatSpec:
    """The format in which rows come out of a file: quantized ones are decoded to fp32 on their way unless they stay what they are."""
    return FP32 if entry.format.is_quantized and entry.format != weight.format else entry.format


def _read(
    files: CheckpointFiles,
    staging: _Staging,
    source: str,
    entry: TensorEntry,
    weight: PackedWeight,
    rows: tuple[int, int],
) -> tuple[Tensor, bool]:
    """Rows (first, count) of a tensor in the weight's format, valid until the next call, and whether all are finite."""
    (start, count), stored = rows, _read_as(entry, weight)
    if stored.is_quantized:
        blocks = staging.raw(count, stored.num_bytes((weight.in_features,)), torch.uint8)
        files.read_blocks(source, entry, start, blocks)
        return blocks, _has_finite_scales(blocks, stored)
    raw = staging.raw(count, weight.in_features, torch_dtype(stored))
    files.read(source, entry, start, raw)
    is_finite = _is_finite(raw)  # before it is converted: that may reuse its place
    return staging.converted(source, raw, weight.format), is_finite


def fill_random(
    plan: Plan, views: Mapping[str, Tensor], ops: KernelOps, *, seed: int, progress: Progress | None = None
) -> None:
    """Fills the packed weights with random numbers (``load_format="dummy"``): normal with 1 / sqrt(in_features), norms 1.

    Each checkpoint tensor depends on ``seed`` and its own name only.
    """
    total = sum(weight.num_bytes for weight in plan.weights.values())
    done = 0
    with _Staging(plan) as staging:
        for weight, source, first_row, num_rows in _sources(plan):
            generator, std = _generator(seed, source), _dummy_std(weight, source)
            for start, count in staging.slices(weight, num_rows, FP32):
                raw = staging.raw(count, weight.in_features, torch.float32)
                if std is None:
                    raw.fill_(1.0)
                else:
                    raw.normal_(0.0, std, generator=generator)
                rows = staging.converted(source, raw, weight.format)
                _put(weight, views[weight.name], first_row + start, rows, ops)
                done += rows.nbytes
                if progress is not None:
                    progress("making random weights", done, total)


def _sources(plan: Plan) -> Iterator[tuple[PackedWeight, str, int, int]]:
    """(packed weight, checkpoint name, first row in the packed weight, rows), in the plan's order."""
    for weight in plan.weights.values():
        first_row = 0
        for source, num_rows in weight.sources:
            yield weight, source, first_row, num_rows
            first_row += num_rows


class _Staging:
    """Two buffers in an arena of their own: a slice as it was stored, and converted. Valid until the next slice."""

    def __init__(self, plan: Plan) -> None:
        widest = max(weight.in_features for weight in plan.weights.values())
        self._size = max(STAGING_BYTES, FP32.num_bytes((PANEL_WIDTH, widest)))
        self._arena = Arena(2 * self._size, "staging")

    def __enter__(self) -> _Staging:
        return self

    def __exit__(self, *_: object) -> None:
        self._arena.close()

    def slices(self, weight: PackedWeight, num_rows: int, stored: FormatSpec) -> Iterator[tuple[int, int]]:
        """(first row, rows) of slices that fit in both types, and in fp32 on the way to a quantized one; whole panels, so that the
        size of slices never shows."""
        formats = (stored, FP32) if weight.format.is_quantized else (stored, weight.format)
        row_bytes = max(fmt.num_bytes((weight.in_features,)) for fmt in formats)
        step = self._size // row_bytes // PANEL_WIDTH * PANEL_WIDTH
        for start in range(0, num_rows, step):
            yield start, min(step, num_rows - start)

    def raw(self, num_rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        """Space for rows as they are stored."""
        num_bytes = num_rows * columns * dtype.itemsize
        return arena_view(self._arena, 0, num_bytes, dtype).view(num_rows, columns)

    def converted(self, name: str, raw: Tensor, fmt: FormatSpec) -> Tensor:
        """The rows in another format.

        Raises:
            ModelError: a value is too large for it.
        """
        if fmt.is_quantized:
            return self._encoded(name, raw, fmt)
        dtype = torch_dtype(fmt)
        if raw.dtype == dtype:
            return raw
        rows = arena_view(self._arena, self._size, raw.numel() * dtype.itemsize, dtype).view(raw.shape)
        rows.copy_(raw)
        if dtype == torch.float16 and _is_finite(raw) and not _is_finite(rows):
            largest = max(abs(float(value)) for value in torch.aminmax(raw))
            raise ModelError(
                f"tensor {name!r} has values up to {largest:.3g}, float16 ends at 65504: use --dtype bfloat16 or auto"
            )
        return rows

    def _encoded(self, name: str, raw: Tensor, fmt: FormatSpec) -> Tensor:
        values = self.converted(name, raw, FP32)
        # Where fp32 does not lie: in the first buffer if it had to be converted, else in the second.
        offset = self._size if values is raw else 0
        row_bytes = fmt.num_bytes((raw.shape[1],))
        blocks = arena_view(self._arena, offset, raw.shape[0] * row_bytes, torch.uint8).view(raw.shape[0], row_bytes)
        if _is_finite(values):
            ggml.encode_blocks(fmt, values.numpy(), blocks.numpy())
            if _has_finite_scales(blocks, fmt):
                return blocks
        raise ModelError(
            f"tensor {name!r} has values up to {float(values.abs().max()):.3g}, which {fmt.name} cannot hold: its scales are fp16 "
            f"and nothing in it is NaN or infinite; use --quantization none"
        )


def _has_finite_scales(blocks: Tensor, fmt: FormatSpec) -> bool:
    """Whether no block of rows [n, bytes] decodes to NaN or infinity."""
    scales = blocks.numpy().reshape(-1, fmt.num_bytes((fmt.block_values,)))[:, :2]
    return bool(np.isfinite(np.ascontiguousarray(scales).view(np.float16)).all())


def _is_finite(rows: Tensor) -> bool:
    # aminmax passes NaN on and takes one pass without temporaries.
    low, high = torch.aminmax(rows)
    return bool(torch.isfinite(low)) and bool(torch.isfinite(high))


def _put(weight: PackedWeight, view: Tensor, first_row: int, rows: Tensor, ops: KernelOps) -> None:
    if weight.layout == "vector":
        view[first_row : first_row + rows.shape[0]].copy_(rows.reshape(-1))
    else:
        ops.pack_rows(rows, view, first_row=first_row)


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def _dummy_std(weight: PackedWeight, name: str) -> float | None:
    """Standard deviation of a dummy tensor; None for norms, which are 1."""
    if weight.layout == "panels":
        return float(weight.in_features**-0.5)
    return _DUMMY_BIAS_STD if name.endswith(".bias") else None


def fill_weights(
    config: EngineConfig, source: ModelSource, resources: Resources, ops: KernelOps, progress: Progress | None
) -> None:
    """Weights into their arena: from the checkpoint, or random ones."""
    plan = resources.fit.plan
    views = weight_views(plan, resources.weights)
    if config.load_format == "dummy":
        fill_random(plan, views, ops, seed=config.seed, progress=progress)
    else:
        if source.quantized_as not in (None, source.formats.weight.name):
            assert source.quantized_as is not None
            message = "%s weights are decoded to %s while loading: they take the memory of %s, not of the file"
            weight = source.formats.weight.name
            _LOG.warning(message, source.quantized_as.upper(), weight, weight)
        read_checkpoint(plan, views, source.tensors, ops, progress=progress)
