# SPDX-License-Identifier: Apache-2.0
"""LoRA adapters of one engine: known by name, loaded when somebody asks for them, in blocks of the KV pool.

Adapters and KV share the pool (S-LoRA's unified paging, arXiv 2311.03285): an adapter takes as many blocks as its true rank needs and gives
them back when others need the room. Blocks lie anywhere; each matrix lies whole in one block::

    block 17  [ q.A | q.B | v.A | .. ]     block 3  [ o.A | .. ]      (another group's block may serve as well)

A request pins its adapter until its last continuation has ended. KV computed with an adapter is shared with requests of that adapter only.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ziggurat.engine.adapter_files import check_indices, read_bytes
from ziggurat.engine.fingerprint import fingerprint
from ziggurat.engine.types import AnyRequest
from ziggurat.errors import ConfigError, DoesNotFit, QueueFull, RequestError, UnsupportedFeature
from ziggurat.kernels.arrays import FLOAT_CODES
from ziggurat.kernels.lora_entries import WHOLE_ROWS
from ziggurat.kernels.ops import MAX_LORA_RANK
from ziggurat.memory.arena import Arena
from ziggurat.memory.kv import DROPPED, spare_blocks
from ziggurat.memory.paged import PagedKVStore
from ziggurat.programs.adapter import AdapterSource, LowRank, read_adapter
from ziggurat.programs.checkpoint import TensorEntry
from ziggurat.programs.plan import LinearStep, Plan
from ziggurat.registry import nearest
from ziggurat.units import format_bytes, round_up

_ALIGNMENT = 64
_MAX_CACHED_SPANS = 8
_RETRY_AFTER_S = 2
Span = tuple[str, int, int]
"""(adapter, first row, number of rows) of a step."""
Entries = tuple[Tensor, Tensor]
"""Arrays for `KernelOps.lora`: int64 [E, 12] and fp32 [E]."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a matrix's outputs lie in the fused matrix that the Plan multiplies by."""

    weight: str
    column: int
    num_rows: int


@dataclass(frozen=True, slots=True)
class _Known:
    """What is kept of an adapter that is not loaded: thousands may be known, and a header has hundreds of entries."""

    folder: Path
    max_rank: int
    num_bytes: int


@dataclass(slots=True)
class _Loaded:
    """An adapter in memory: the names of its blocks in the store, and its entries by the Plan's weights, without rows."""

    blocks: list[str] = field(default_factory=list)
    entries: dict[str, list[tuple[tuple[int, ...], float]]] = field(default_factory=dict)


class AdapterPool:
    """The adapters of an engine. Used by the engine's thread; `names` may be read by others.

    Args:
        store: gives blocks; never so many that a lone sequence of max_model_len would not fit beside them.
        pools: the arenas of its groups.
        set_aside: blocks of each group that are out of circulation, these among them.
    """

    def __init__(
        self, plan: Plan, store: PagedKVStore, pools: Sequence[Arena], set_aside: Callable[[], int] | None = None
    ) -> None:
        self._plan, self._store, self._pools, self._set_aside = plan, store, pools, set_aside
        self._places = _places(plan)
        self._known: dict[str, _Known] = {}
        self._loaded: OrderedDict[str, _Loaded] = OrderedDict()
        self._pins: Counter[str] = Counter()
        self._requests: dict[str, tuple[str, int]] = {}
        self._cached: OrderedDict[tuple[Span, ...], dict[str, Entries]] = OrderedDict()
        self._num_made = 0
        self.num_loads = 0

    # ---- known adapters

    def names(self) -> tuple[str, ...]:
        """Of all known adapters, in the order of registering."""
        return tuple(self._known)

    def register(self, name: str, folder: Path) -> None:
        """Make an adapter known; its matrices are read when it is asked for. One that is refused leaves no trace.

        Raises:
            ConfigError: the name is taken.
            ModelError, UnsupportedFeature: see `read_adapter`.
            DoesNotFit: a matrix is larger than a block, or all of it than the pool has beside one long sequence.
        """
        if any(group.is_tail for group in self._plan.program.kv_groups()):
            raise UnsupportedFeature(
                f"adapters share blocks with the KV cache, which {self._plan.kv_format.name} packs: use another --kv-cache-dtype",
                feature="lora:kv-cache-dtype",
            )
        if name in self._known:
            raise ConfigError(f"an adapter named {name!r} is there already: unload it first, or take another name")
        source = self._read(folder)
        needed, room = self._pack(source), self._room()
        if len(needed) > room:
            raise DoesNotFit(
                f"adapter {name!r} takes {len(needed)} KV blocks ({format_bytes(source.num_bytes)}), and the pool has {room} beside one "
                "sequence of max_model_len: raise --memory or lower --max-model-len",
                needed_bytes=source.num_bytes,
                available_bytes=room * self._block_bytes(),
            )
        self._known[name] = _Known(folder, source.max_rank, source.num_bytes)

    def unregister(self, name: str) -> None:
        """Forget an adapter.

        Raises:
            RequestError: it is not known, or requests use it now.
        """
        self._check_known(name)
        if self._pins[name]:
            raise RequestError(
                f"adapter {name!r} serves {self._pins[name]} open continuations: unload it when they have ended",
                param="lora_name",
                code="adapter_in_use",
            )
        if name in self._loaded:
            self._unload(name)
        del self._known[name]

    def fingerprint(self, name: str) -> str:
        """Of an adapter's files.

        Raises:
            RequestError: it is not known.
        """
        self._check_known(name)
        return fingerprint(self._known[name].folder)

    # ---- requests

    @contextmanager
    def holding(self, request: AnyRequest) -> Iterator[None]:
        """Load and pin a request's adapter; given back at once if the body fails, else by `release`.

        Raises:
            RequestError: an unknown adapter.
            QueueFull: others hold the room that it needs.
        """
        name = request.adapter
        if not name:
            yield
            return
        self._check_known(name)
        count = request.params.num_sequences
        self._pins[name] += count
        try:
            self._load(name)
            yield
        except BaseException:
            self._pins[name] -= count
            raise
        self._requests[request.request_id] = (name, count)

    def release(self, request_id: str) -> None:
        """One continuation of a request has ended."""
        if request_id not in self._requests:
            return
        name, count = self._requests.pop(request_id)
        self._pins[name] -= 1
        if count > 1:
            self._requests[request_id] = (name, count - 1)

    def entries(self, spans: tuple[Span, ...]) -> Mapping[str, Entries]:
        """By the Plan's weights, what `KernelOps.lora` adds to their products in a step with those spans."""
        found = self._cached.get(spans)
        if found is None:
            found = self._cached[spans] = self._assemble(spans)
            if len(self._cached) > _MAX_CACHED_SPANS:
                self._cached.popitem(last=False)
        else:
            self._cached.move_to_end(spans)
        return found

    # ---- memory

    def make_room(self, max_blocks: int) -> bool:
        """Give up adapters that nobody uses until all take at most so many blocks; whether that was enough."""
        for name in list(self._loaded):
            if self.num_blocks > max_blocks and not self._pins[name]:
                self._unload(name)
        return self.num_blocks <= max_blocks

    def report(self) -> list[dict[str, str | int | bool]]:
        """A row per known adapter."""
        return [
            {
                "name": name,
                "path": str(source.folder),
                "rank": source.max_rank,
                "num_bytes": source.num_bytes,
                "is_loaded": name in self._loaded,
                "num_blocks": len(self._loaded[name].blocks) if name in self._loaded else 0,
                "num_continuations": self._pins[name],
            }
            for name, source in self._known.items()
        ]

    def close(self) -> None:
        """Give all blocks back."""
        for name in list(self._loaded):
            self._unload(name)

    # ---- parts

    def _check_known(self, name: str) -> None:
        if name not in self._known:
            hint = nearest(name, list(self._known)) or "."
            raise RequestError(f"no adapter {name!r} is loaded{hint}", param="model", code="model_not_found")

    def _read(self, folder: Path) -> AdapterSource:
        source = read_adapter(folder, self._plan.program)
        for tensor, update in source.updates.items():
            self._check(tensor, update, folder)
        return source

    def _check(self, tensor: str, update: LowRank, folder: Path) -> None:
        place = self._places.get(tensor)
        if place is None:
            raise UnsupportedFeature(
                f"{folder} adapts {tensor}, which is not a plain linear here (an expert's, or the head): only those are served",
                feature="lora:target",
            )
        columns = self._plan.weights[place.weight].in_features
        if update.rank > MAX_LORA_RANK or place.num_rows % 8 or columns % 8:
            raise UnsupportedFeature(
                f"{folder}: rank {update.rank} of {tensor} [{place.num_rows}, {columns}]: ranks up to {MAX_LORA_RANK} and sizes that are "
                "multiples of 8 are served",
                feature="lora:rank",
            )
        if update.a_index is not None and update.b_index is not None:
            lengths = columns // update.a_index.shape[1], place.num_rows // update.b_index.shape[1]
            if any(length % 8 for length in lengths):
                raise UnsupportedFeature(
                    f"{folder}: {tensor} is made of shards of {lengths[0]} and {lengths[1]} values: multiples of 8 are served",
                    feature="mos:shards",
                )
        largest = max(update.a.num_bytes, update.b.num_bytes)
        if largest > self._block_bytes():
            raise DoesNotFit(
                f"{folder}: a matrix or pool of {tensor} takes {format_bytes(largest)}, a KV block has "
                f"{format_bytes(self._block_bytes())}: raise --block-size",
                needed_bytes=largest,
                available_bytes=self._block_bytes(),
            )

    def _block_bytes(self) -> int:
        """Of the largest group's blocks."""
        return max(self._plan.block_bytes(group) for group in self._plan.program.kv_groups())

    @property
    def num_blocks(self) -> int:
        """Blocks of each group that loaded adapters take."""
        return sum(len(loaded.blocks) for loaded in self._loaded.values())

    def _room(self) -> int:
        """Blocks that adapters may have together."""
        spare = spare_blocks(self._store, self._plan.limits.max_model_len)
        return spare - (self._set_aside() - self.num_blocks if self._set_aside is not None else 0)

    def _pack(self, source: AdapterSource) -> list[list[tuple[TensorEntry, bool, int, int]]]:
        """Which pieces (entry, is transposed, group, offset) lie in which block: the largest first, each where it fits first."""
        sizes = [self._plan.block_bytes(group) for group in self._plan.program.kv_groups()]
        blocks: list[list[tuple[TensorEntry, bool, int, int]]] = []
        ends: list[list[int]] = []
        for entry, is_transposed in sorted(source.pieces(), key=lambda piece: -piece[0].num_bytes):
            number, group = next(
                (
                    (number, group)
                    for number, used in enumerate(ends)
                    for group, size in enumerate(sizes)
                    if used[group] + entry.num_bytes <= size
                ),
                (len(blocks), max(range(len(sizes)), key=sizes.__getitem__)),
            )
            if number == len(blocks):
                blocks.append([])
                ends.append([0] * len(sizes))
            blocks[number].append((entry, is_transposed, group, ends[number][group]))
            ends[number][group] = round_up(ends[number][group] + entry.num_bytes, _ALIGNMENT)
        return blocks

    def _load(self, name: str) -> None:
        if name in self._loaded:
            self._loaded.move_to_end(name)
            return
        source = self._read(self._known[name].folder)
        packed = self._pack(source)
        is_enough = self.make_room(self._room() - len(packed))
        if not is_enough or min(self._store.free_blocks()) < len(packed):
            raise QueueFull(
                f"adapter {name!r} needs {len(packed)} KV blocks, which running requests and their adapters hold: retry in "
                f"{_RETRY_AFTER_S} s",
                retry_after_s=_RETRY_AFTER_S,
            )
        loaded = self._loaded[name] = _Loaded()
        addresses: dict[int, int] = {}
        try:
            check_indices(source)
            for pieces in packed:
                tables = self._take(loaded, name)
                for entry, is_transposed, group, offset in pieces:
                    start = tables[group] * self._plan.block_bytes(self._plan.program.kv_groups()[group]) + offset
                    self._pools[group].buffer[start : start + entry.num_bytes] = read_bytes(entry, is_transposed).data
                    addresses[id(entry)] = self._pools[group].address + start
        except BaseException:
            self._unload(name)
            raise
        self.num_loads += 1
        for tensor, update in source.updates.items():
            place = self._places[tensor]
            loaded.entries.setdefault(place.weight, []).append((_entry(update, place, addresses), update.scale))

    def _take(self, loaded: _Loaded, name: str) -> list[int]:
        """A block of every group; returns their numbers."""
        self._num_made += 1
        held = f"adapter/{name}/{self._num_made}"
        self._store.open(held, [0], max_cached=0)
        loaded.blocks.append(held)
        self._store.reserve(held, 1)
        return [next(block for block in table if block != DROPPED) for table in self._store.view(held).tables]

    def _unload(self, name: str) -> None:
        for held in self._loaded.pop(name).blocks:
            self._store.release(held)
        self._cached.clear()

    def _assemble(self, spans: tuple[Span, ...]) -> dict[str, Entries]:
        numbers: dict[str, list[tuple[int, ...]]] = {}
        scales: dict[str, list[float]] = {}
        for name, first_row, num_rows in spans:
            for weight, rows in self._loaded[name].entries.items():
                numbers.setdefault(weight, []).extend((first_row, num_rows, *entry) for entry, _ in rows)
                scales.setdefault(weight, []).extend(scale for _, scale in rows)
        return {
            weight: (torch.tensor(rows, dtype=torch.int64), torch.tensor(scales[weight], dtype=torch.float32))
            for weight, rows in numbers.items()
        }


def _places(plan: Plan) -> dict[str, _Place]:
    """By the names of the checkpoint: every matrix of a plain linear."""
    places = {}
    for step in plan.steps:
        if isinstance(step, LinearStep):
            column = 0
            for source, num_rows in plan.weights[step.weight].sources:
                if plan.program.weights[source].role == "matrix":
                    places[source] = _Place(step.weight, column, num_rows)
                column += num_rows
    return places


def _entry(update: LowRank, place: _Place, addresses: Mapping[int, int]) -> tuple[int, ...]:
    """What `KernelOps.lora` wants to know, but for the rows."""
    code = FLOAT_CODES[update.a.format.name]
    a, b = addresses[id(update.a)], addresses[id(update.b)]
    plain = (a, b, update.rank, place.column, place.num_rows, code)
    if update.a_index is None or update.b_index is None:
        return (*plain, *WHOLE_ROWS)
    indices = addresses[id(update.a_index)], addresses[id(update.b_index)]
    return (*plain, *indices, update.a_index.shape[1], update.b_index.shape[1])
