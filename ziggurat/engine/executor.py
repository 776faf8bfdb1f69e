# SPDX-License-Identifier: Apache-2.0
"""Runs a Plan: a list of bound kernel calls over views of the arenas. Knows no architecture and decides nothing.

Activations live where the Plan put them in the workspace; nothing is allocated per step but a few index arrays. With which kernels
it runs (native or torch twins) is the caller's choice; rows do not depend on the batch with either.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ziggurat.engine.adapters import AdapterPool
from ziggurat.engine.binding import Call, StepBinder, Values
from ziggurat.engine.inputs import InputBuilder, StepInputs, StepShape
from ziggurat.engine.reading import read_prompts
from ziggurat.engine.rotary import all_rope_tables
from ziggurat.engine.sampler import Sampler
from ziggurat.engine.streaming import LayerStream
from ziggurat.engine.swapping import BlockMover
from ziggurat.engine.tape import TapeShelf
from ziggurat.engine.weights import arena_view
from ziggurat.errors import EngineError
from ziggurat.kernels import KernelOps, KVLayer
from ziggurat.kernels.native import NativeOps
from ziggurat.kernels.ops import load_native
from ziggurat.memory.arena import Arena
from ziggurat.memory.kv import CopyOp
from ziggurat.programs.formats import FP32
from ziggurat.programs.ops import ROUTED, ROWS, TOKENS
from ziggurat.programs.plan import NormStep, Plan, SelectStep
from ziggurat.scheduling.protocol import Batch, SampledToken, SampleRequest, StepResult

Rows = NDArray[np.float32]

_MAX_TAPES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Where an executor works. The arenas belong to the caller and outlive the executor.

    Attributes:
        weights: packed weights by name, from `weights.weight_views`.
        workspace: at least ``plan.workspace_bytes``.
        tables: at least ``plan.table_bytes``.
        pools: one arena per KV group.
        swap: copies of blocks of preempted sequences; None without a swap space.
        layers: brings the weights of streamed layers to their places; None if all weights stay.
        adapters: LoRA adapters; None serves the base model alone.
    """

    weights: Mapping[str, Tensor]
    workspace: Arena
    tables: Arena
    pools: Sequence[Arena]
    swap: Arena | None = None
    layers: LayerStream | None = None
    adapters: AdapterPool | None = None


class PlanExecutor:
    """Runs batches of one Plan. One thread at a time.

    Raises:
        EngineError: from `run`, when a step fails.
    """

    def __init__(self, plan: Plan, memory: Memory, ops: KernelOps) -> None:
        self.plan = plan
        self._ops = ops
        self._library = load_native() if isinstance(ops, NativeOps) else None
        self._tapes = TapeShelf(_MAX_TAPES)
        self._memory = memory
        self._inputs = InputBuilder(plan.limits, len(plan.program.kv_groups()))
        self._sampler = Sampler(plan.program.vocab_size, plan.limits.max_num_seqs)
        self._ropes = all_rope_tables(plan, memory.tables)
        self._pools = [arena_view(pool, 0, pool.num_bytes, torch.uint8) for pool in memory.pools]
        self.mover = None if memory.swap is None else BlockMover(plan, self._pools, memory.swap, ops)
        self._kv = self._kv_layers()
        self._bases: list[tuple[Tensor, str]] = []
        self._slots = self._bind_buffers()
        split = next(i for i, step in enumerate(plan.steps) if isinstance(step, SelectStep))
        binder = StepBinder(ops=ops, weights=memory.weights, slots=self._slots, kv=self._kv, ropes=self._ropes)
        self._body = self._segments(split, binder)
        self._head = [binder.bind(step) for step in plan.steps[split:]]
        # Rows, then the final norm; what follows makes logits of them.
        norms = [step for step in plan.steps[split:] if isinstance(step, NormStep)]
        self._num_hidden_calls = plan.steps[split:].index(norms[-1]) + 1
        self._hidden = self._slots[norms[-1].out]
        self._num_tokens = 0
        self.num_steps = 0

    def run(self, batch: Batch) -> StepResult:
        """Copies, one ragged forward, then sampling of the rows that ask for it, then the prompt rows that are read."""
        try:
            logits, samples = self.forward(batch)
            result = self._sample(logits.numpy(), samples)
            if any(item.read is not None for item in batch.items):
                result = read_prompts(batch, result, self._sampler, self.rows, self.plan.limits.max_num_seqs)
        except Exception as error:
            raise EngineError(f"step {batch.step} failed: {type(error).__name__}: {error}") from error
        self.num_steps += 1
        return result

    def _sample(self, rows: Rows, samples: Sequence[SampleRequest]) -> StepResult:
        tokens: dict[str, SampledToken] = {}
        errors: dict[str, str] = {}
        for row, sample in zip(rows, samples, strict=True):
            try:
                tokens |= zip(sample.seq_ids, self._sampler.sample(row, sample), strict=True)
            except EngineError as error:
                # One sequence's numbers are broken; its neighbours in the batch go on.
                errors |= dict.fromkeys(sample.seq_ids, str(error))
        return StepResult(tokens=tokens, errors=errors)

    def forward(self, batch: Batch) -> tuple[Tensor, tuple[SampleRequest, ...]]:
        """Logits fp32 [R, vocab] of the rows that are sampled (a view of the workspace, valid until the next call), and how to sample."""
        if self.mover is not None:
            self.mover.carry_out(batch.moves)
        self._copy(batch.copies)
        shape = self._inputs.fill(batch)
        key = (shape.num_tokens, shape.num_seqs, shape.num_rows)
        # Adapters come and go, and their addresses with them.
        if shape.adapters or not self._tapes.play(key):
            self._compute_and_keep(shape, key)
        self._num_tokens = shape.num_tokens
        base, _ = self._bases[self._slots[self.plan.logits]]
        return base[: shape.num_rows], shape.samples

    def rows(self, rows: Sequence[int], *, is_hidden: bool) -> Rows:
        """Further rows of the last forward: logits fp32 [R, vocab], or hidden states [R, hidden] after the final norm.

        At most ``max_num_seqs`` at a time: they go through the head's own buffers. A view, valid until the next call.
        """
        inputs = self._inputs.select(rows, self._num_tokens)
        values = self._cut(self._num_tokens, len(rows))
        for call in self._head[: self._num_hidden_calls] if is_hidden else self._head:
            call(values, inputs)
        out: Rows = values[self._hidden if is_hidden else self._slots[self.plan.logits]].numpy()
        return out

    def _compute_and_keep(self, shape: StepShape, key: Hashable) -> None:
        # Shapes of prefills hardly ever come back; those of decodes do, thousands of times.
        # Streamed layers are waited for between calls.
        is_kept = (
            self._memory.layers is None and not shape.adapters and shape.num_tokens <= self.plan.limits.max_num_seqs
        )
        if self._library is None or not is_kept:
            self._compute(shape)
            return
        tape = self._library.Tape()
        with tape:
            self._compute(shape)
        self._tapes.keep(key, tape)

    def _compute(self, shape: StepShape) -> None:
        inputs, values = self._inputs.views(shape), self._cut(shape.num_tokens, shape.num_rows)
        if shape.adapters:
            assert self._memory.adapters is not None, "an adapter was let in that nobody has"
            inputs = replace(inputs, adapters=self._memory.adapters.entries(shape.adapters))
        for layer, calls in self._body:
            self._run_segment(layer, calls, values, inputs)
        if shape.num_rows:
            for call in self._head:
                call(values, inputs)

    def _run_segment(self, layer: int | None, calls: Sequence[Call], values: Values, inputs: StepInputs) -> None:
        layers = self._memory.layers if layer is not None else None
        try:
            if layers is not None and layer is not None:
                layers.acquire(layer)
            for call in calls:
                call(values, inputs)
            if layers is not None and layer is not None:
                layers.release(layer)
        except BaseException:
            if self._memory.layers is not None:
                self._memory.layers.restart()
            raise

    def _segments(self, split: int, binder: StepBinder) -> list[tuple[int | None, list[Call]]]:
        """The steps before ``split``, bound: those of a streamed layer by its number, the others between them."""
        segments: list[tuple[int | None, list[Call]]] = []
        layer_of = {
            step: number
            for number in self.plan.streamed_layers
            for step in range(self.plan.layer_spans[number].first_step, self.plan.layer_spans[number].end_step)
        }
        for index, step in enumerate(self.plan.steps[:split]):
            layer = layer_of.get(index)
            if not segments or segments[-1][0] != layer:
                segments.append((layer, []))
            segments[-1][1].append(binder.bind(step))
        return segments

    def _cut(self, num_tokens: int, num_rows: int) -> Values:
        counts = {TOKENS: num_tokens, ROWS: num_rows, ROUTED: num_tokens * self.plan.program.top_k}
        return [base[: counts[leading]] for base, leading in self._bases]

    def _copy(self, copies: Sequence[CopyOp]) -> None:
        for group in self.plan.program.kv_groups():
            pairs = [(copy.source, copy.destination) for copy in copies if copy.group == group.index]
            if not pairs:
                continue
            # A block may be given up by one sequence, taken by another and copied again within one step: then order matters.
            is_chained = not {source for source, _ in pairs}.isdisjoint(destination for _, destination in pairs)
            for part in [[pair] for pair in pairs] if is_chained else [pairs]:
                index = torch.tensor(part, dtype=torch.int64)
                self._ops.copy_blocks(self._pools[group.index], index, block_bytes=self.plan.block_bytes(group))

    def _kv_layers(self) -> dict[int, KVLayer]:
        """By layer; see `KVLayer.of_group` for what a block holds."""
        layers: dict[int, KVLayer] = {}
        for group in self.plan.program.kv_groups():  # tails come last
            for place, layer in enumerate(group.layers):
                made = KVLayer.of_group(
                    self._pools[group.index],
                    FP32 if group.is_tail else self.plan.kv_format,
                    block_size=self.plan.limits.block_size,
                    num_kv_heads=group.num_kv_heads,
                    head_dim=group.head_dim,
                    place=place,
                    num_layers=len(group.layers),
                )
                layers[layer] = replace(layers[layer], tail=made) if group.is_tail else made
        return layers

    def _bind_buffers(self) -> dict[str, int]:
        """Slot of every buffer. Layers reuse the same places, so a step cuts few views."""
        slots: dict[str, int] = {}
        known: dict[tuple[int, int, str], int] = {}
        for name, buffer in self.plan.buffers.items():
            key = (buffer.offset, buffer.width, buffer.leading)
            if key not in known:
                known[key] = len(self._bases)
                flat = arena_view(self._memory.workspace, buffer.offset, buffer.num_bytes, torch.float32)
                self._bases.append((flat.view(buffer.max_rows, buffer.width), buffer.leading))
            slots[name] = known[key]
        return slots
