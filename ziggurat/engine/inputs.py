# SPDX-License-Identifier: Apache-2.0
"""A Batch as the arrays that kernels read: positions, slots, block tables, rows to sample. Space for all of it is taken once.

Example: two sequences, block size 4; A decodes token 5, B prefills tokens 0..2::

    token_ids        [a5, b0, b1, b2]        query_starts   [0, 1, 4]
    positions        [ 5,  0,  1,  2]        first_positions [5, 0]
    tables[group]    [[7, 3, -1], [2, -1, -1]]
    slots[group]     [13, 8, 9, 10]          (block 3, slot 1; block 2, slots 0..2)
    rows             [0, 3]                  (the last row of each sequence that samples)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ziggurat.memory.kv import DROPPED
from ziggurat.programs.plan import Limits
from ziggurat.scheduling.protocol import Batch, BatchItem, SampleRequest
from ziggurat.units import ceil_div

Ints = NDArray[np.int64]
Shorts = NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepInputs:
    """Views of one step's arrays, valid until the next `InputBuilder.fill`. Equal shapes give views of equal addresses.

    Attributes:
        token_ids, positions: int64 [T].
        query_starts, first_positions: int32 [S + 1], [S].
        tables, slots: per KV group int32 [S, B] and int64 [T].
        rows: int64 [R], rows whose logits are wanted.
        adapters: by packed weights, what LoRA adapters add to their products (`engine.adapters`); empty without adapters.
    """

    token_ids: Tensor
    positions: Tensor
    query_starts: Tensor
    first_positions: Tensor
    tables: tuple[Tensor, ...]
    slots: tuple[Tensor, ...]
    rows: Tensor
    adapters: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepShape:
    """Sizes of a step, and what to sample from each of its ``num_rows`` wanted rows.

    Attributes:
        adapters: (name, first row, number of rows) of every sequence that runs with an adapter.
    """

    num_tokens: int
    num_seqs: int
    num_rows: int
    samples: tuple[SampleRequest, ...]
    adapters: tuple[tuple[str, int, int], ...] = ()


class InputBuilder:
    """Fills the arrays of each step, in place.

    Args:
        limits: the most tokens, sequences and positions of a step.
        num_groups: KV groups.
    """

    def __init__(self, limits: Limits, num_groups: int) -> None:
        self._limits = limits
        tokens, seqs = limits.max_num_batched_tokens, limits.max_num_seqs
        blocks = ceil_div(limits.max_model_len, limits.block_size)
        self._token_ids: Ints = np.zeros(tokens, np.int64)
        self._positions: Ints = np.zeros(tokens, np.int64)
        self._query_starts: Shorts = np.zeros(seqs + 1, np.int32)
        self._first_positions: Shorts = np.zeros(seqs, np.int32)
        self._rows: Ints = np.zeros(seqs, np.int64)
        self._tables: list[Shorts] = [np.full((seqs, blocks), DROPPED, np.int32) for _ in range(num_groups)]
        self._slots: list[Ints] = [np.zeros(tokens, np.int64) for _ in range(num_groups)]

    def fill(self, batch: Batch) -> StepShape:
        """Write the arrays of a batch. It must respect the limits."""
        num_tokens, num_seqs = batch.num_tokens, len(batch.items)
        limits = self._limits
        assert num_tokens <= limits.max_num_batched_tokens, f"{num_tokens} tokens in a step for {limits}"
        assert num_seqs <= limits.max_num_seqs, f"{num_seqs} sequences in a step for {limits}"
        samples: list[SampleRequest] = []
        adapters: list[tuple[str, int, int]] = []
        end = 0
        for index, item in enumerate(batch.items):
            if item.adapter:
                adapters.append((item.adapter, end, len(item.token_ids)))
            end = self._place(index, item, end)
            if item.sample is not None:
                self._rows[len(samples)] = end - 1
                samples.append(item.sample)
        for group in range(len(self._tables)):
            self._fill_slots(group, num_tokens, num_seqs)
        return StepShape(
            num_tokens=num_tokens,
            num_seqs=num_seqs,
            num_rows=len(samples),
            samples=tuple(samples),
            adapters=tuple(adapters),
        )

    def views(self, shape: StepShape) -> StepInputs:
        """The arrays, cut to the shape."""
        num_tokens, num_seqs = shape.num_tokens, shape.num_seqs
        return StepInputs(
            token_ids=torch.from_numpy(self._token_ids[:num_tokens]),
            positions=torch.from_numpy(self._positions[:num_tokens]),
            query_starts=torch.from_numpy(self._query_starts[: num_seqs + 1]),
            first_positions=torch.from_numpy(self._first_positions[:num_seqs]),
            tables=tuple(torch.from_numpy(table[:num_seqs]) for table in self._tables),
            slots=tuple(torch.from_numpy(slots[:num_tokens]) for slots in self._slots),
            rows=torch.from_numpy(self._rows[: shape.num_rows]),
        )

    def select(self, rows: Sequence[int], num_tokens: int) -> StepInputs:
        """Inputs of the head alone, for further rows of a step of ``num_tokens`` tokens that has run. At most ``max_num_seqs``."""
        assert len(rows) <= len(self._rows), f"{len(rows)} rows at once for {self._limits}"
        assert 0 <= min(rows) <= max(rows) < num_tokens, f"rows outside the step's {num_tokens} tokens"
        self._rows[: len(rows)] = rows
        return self.views(StepShape(num_tokens=0, num_seqs=0, num_rows=len(rows), samples=()))

    def _place(self, index: int, item: BatchItem, start: int) -> int:
        """One sequence's rows ``[start, end)``; returns their end."""
        end = start + len(item.token_ids)
        last_position = item.start + len(item.token_ids)
        assert last_position <= self._limits.max_model_len, f"{item.seq_id}: {last_position} tokens for {self._limits}"
        self._token_ids[start:end] = item.token_ids
        self._positions[start:end] = np.arange(item.start, last_position)
        self._query_starts[index + 1] = end
        self._first_positions[index] = item.start
        for table, blocks in zip(self._tables, item.kv.tables, strict=True):
            num_blocks = min(len(blocks), table.shape[1])
            table[index, :num_blocks] = blocks[:num_blocks]
            table[index, num_blocks:] = DROPPED
        return end

    def _fill_slots(self, group: int, num_tokens: int, num_seqs: int) -> None:
        size = self._limits.block_size
        positions = self._positions[:num_tokens]
        sequence = np.repeat(np.arange(num_seqs), np.diff(self._query_starts[: num_seqs + 1]))
        blocks = self._tables[group][sequence, positions // size].astype(np.int64)
        assert num_tokens == 0 or blocks.min() >= 0, "a token of the step has no block"
        np.add(blocks * size, positions % size, out=self._slots[group][:num_tokens])
