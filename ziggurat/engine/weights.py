# SPDX-License-Identifier: Apache-2.0
"""Weights into one packed arena, as the Plan says, through two small staging buffers.

::

    file --pread--> raw (rows, the file's type; decoded to fp32 if quantized) --convert--> rows (the plan's type) --pack--> arena (panels)

No file is mapped and nothing large comes from malloc, which would keep what it once had: the peak is the packed weights plus
`STAGING_BYTES` twice, and about once more for quantized rows and what numpy needs to decode them.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping

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
    non_finite: dict[str, None] = {}
    done = 0
    with _Staging(plan) as staging, CheckpointFiles() as files:
        for weight, source, first_row, num_rows in _sources(plan):
            entry = entries[source]
            # Quantized rows are decoded to fp32 on their way.
            stored = FP32 if entry.format.is_quantized else entry.format
            for start, count in staging.slices(weight, num_rows, stored):
                raw = staging.raw(count, weight.in_features, torch_dtype(stored))
                files.read(source, entry, start, raw)
                if not _is_finite(raw):
                    non_finite[source] = None
                rows = staging.converted(source, raw, torch_dtype(weight.format))
                _put(weight, views[weight.name], first_row + start, rows, ops)
                done += entry.format.num_bytes(raw.shape)
                if progress is not None:
                    progress("loading weights", done, total)
    if non_finite:
        first = next(iter(non_finite))
        _LOG.warning("%d tensors hold NaN or infinity, first %r: expect failing requests", len(non_finite), first)


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
                rows = staging.converted(source, raw, torch_dtype(weight.format))
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
        """(first row, rows) of slices that fit in both types; whole panels, so that the size of slices never shows."""
        row_bytes = max(stored.num_bytes((weight.in_features,)), weight.format.num_bytes((weight.in_features,)))
        step = self._size // row_bytes // PANEL_WIDTH * PANEL_WIDTH
        for start in range(0, num_rows, step):
            yield start, min(step, num_rows - start)

    def raw(self, num_rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        """Space for rows as they are stored."""
        num_bytes = num_rows * columns * dtype.itemsize
        return arena_view(self._arena, 0, num_bytes, dtype).view(num_rows, columns)

    def converted(self, name: str, raw: Tensor, dtype: torch.dtype) -> Tensor:
        """The rows in another type.

        Raises:
            ModelError: a value is too large for it.
        """
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
        if source.quantized_as is not None:
            message = "%s weights are decoded to %s while loading: they take the memory of %s, not of the file"
            weight = source.formats.weight.name
            _LOG.warning(message, source.quantized_as.upper(), weight, weight)
        read_checkpoint(plan, views, source.tensors, ops, progress=progress)
