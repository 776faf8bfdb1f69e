# SPDX-License-Identifier: Apache-2.0
"""Runs a Plan: a list of bound kernel calls over views of the arenas. Knows no architecture and decides nothing.

Activations live where the Plan put them in the workspace; nothing is allocated per step but a few index arrays. With which kernels
it runs (native or torch twins) is the caller's choice; rows do not depend on the batch with either.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ziggurat.engine.inputs import InputBuilder, StepInputs, StepShape
from ziggurat.engine.reading import read_prompts
from ziggurat.engine.rotary import all_rope_tables
from ziggurat.engine.sampler import Sampler
from ziggurat.engine.swapping import BlockMover
from ziggurat.engine.tape import TapeShelf
from ziggurat.engine.weights import arena_view
from ziggurat.errors import EngineError
from ziggurat.kernels import KernelOps, KVLayer
from ziggurat.kernels.native import NativeOps
from ziggurat.kernels.ops import load_native
from ziggurat.memory.arena import Arena
from ziggurat.memory.kv import CopyOp
from ziggurat.programs.ops import ROUTED, ROWS, TOKENS
from ziggurat.programs.plan import (
    ActivationStep,
    AddStep,
    AttentionStep,
    CombineStep,
    EmbedStep,
    GroupedLinearStep,
    LinearStep,
    NormStep,
    Plan,
    QKVStep,
    RouteStep,
    SelectStep,
    SoftCapStep,
    Step,
)
from ziggurat.programs.program import KVGroup
from ziggurat.scheduling.protocol import Batch, SampledToken, SampleRequest, StepResult

Values = Sequence[Tensor]
"""Activation buffers cut to the rows of this step, by slot number."""
Call = Callable[[Values, StepInputs], None]
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
    """

    weights: Mapping[str, Tensor]
    workspace: Arena
    tables: Arena
    pools: Sequence[Arena]
    swap: Arena | None = None


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
        self.mover = None if memory.swap is None else BlockMover(plan, self._pools, memory.swap)
        self._kv = self._kv_layers()
        self._bases: list[tuple[Tensor, str]] = []
        self._slots = self._bind_buffers()
        split = next(i for i, step in enumerate(plan.steps) if isinstance(step, SelectStep))
        self._body = [self._bind(step) for step in plan.steps[:split]]
        self._head = [self._bind(step) for step in plan.steps[split:]]
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
        if not self._tapes.play(key):
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
        if self._library is None or shape.num_tokens > self.plan.limits.max_num_seqs:
            self._compute(shape)
            return
        tape = self._library.Tape()
        with tape:
            self._compute(shape)
        self._tapes.keep(key, tape)

    def _compute(self, shape: StepShape) -> None:
        inputs, values = self._inputs.views(shape), self._cut(shape.num_tokens, shape.num_rows)
        for call in self._body:
            call(values, inputs)
        if shape.num_rows:
            for call in self._head:
                call(values, inputs)

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
        """By layer. Layout: [block][layer of the group][key | value][kv head][slot in block][head_dim]."""
        layers = {}
        for group in self.plan.program.kv_groups():
            head = self.plan.kv_format.num_bytes((self.plan.limits.block_size, group.head_dim))
            for place, layer in enumerate(group.layers):
                layers[layer] = KVLayer(
                    pool=self._pools[group.index],
                    format=self.plan.kv_format,
                    block_size=self.plan.limits.block_size,
                    num_kv_heads=group.num_kv_heads,
                    head_dim=group.head_dim,
                    block_stride=self.plan.block_bytes(group),
                    layer_offset=place * _layer_bytes(group, head),
                    kv_stride=group.num_kv_heads * head,
                    head_stride=head,
                )
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

    def _bind(self, step: Step) -> Call:
        binders: dict[type[Step], Callable[..., Call]] = {
            EmbedStep: self._bind_embed,
            NormStep: self._bind_norm,
            LinearStep: self._bind_linear,
            QKVStep: self._bind_qkv,
            AttentionStep: self._bind_attention,
            ActivationStep: self._bind_activation,
            SelectStep: self._bind_select,
            AddStep: self._bind_add,
            SoftCapStep: self._bind_soft_cap,
            RouteStep: self._bind_route,
            GroupedLinearStep: self._bind_grouped_linear,
            CombineStep: self._bind_combine,
        }
        return binders[type(step)](step)

    def _weight(self, name: str | None) -> Tensor | None:
        return None if name is None else self._memory.weights[name]

    def _bind_embed(self, step: EmbedStep) -> Call:
        panels, out, scale, kernel = self._weight(step.weight), self._slots[step.out], step.scale, self._ops.embed_rows

        def call(values: Values, inputs: StepInputs) -> None:
            kernel(inputs.token_ids, panels, values[out], scale=scale)

        return call

    def _bind_norm(self, step: NormStep) -> Call:
        weight, x, out = self._weight(step.weight), self._slots[step.x], self._slots[step.out]
        eps, offset, kernel = step.eps, step.weight_offset, self._ops.rms_norm

        def call(values: Values, inputs: StepInputs) -> None:
            kernel(values[x], weight, values[out], eps=eps, weight_offset=offset)

        return call

    def _bind_linear(self, step: LinearStep) -> Call:
        panels, bias = self._weight(step.weight), self._weight(step.bias)
        x, out, accumulate, kernel = self._slots[step.x], self._slots[step.out], step.accumulate, self._ops.linear
        scratch = None if step.scratch is None else self._slots[step.scratch]

        def call(values: Values, inputs: StepInputs) -> None:
            rows = None if scratch is None else values[scratch]
            kernel(values[x], panels, values[out], bias=bias, accumulate=accumulate, scratch=rows)

        return call

    def _bind_qkv(self, step: QKVStep) -> Call:
        qkv, group, kv, kernel = self._slots[step.qkv], step.group, self._kv[step.layer], self._ops.qkv_post
        q_norm, k_norm = self._weight(step.q_norm), self._weight(step.k_norm)
        (cos, sin), heads, eps, offset = self._ropes[step.rope], step.num_heads, step.eps, step.weight_offset

        def call(values: Values, inputs: StepInputs) -> None:
            kernel(
                values[qkv],
                positions=inputs.positions,
                slot_mapping=inputs.slots[group],
                cos=cos,
                sin=sin,
                kv=kv,
                num_heads=heads,
                q_norm=q_norm,
                k_norm=k_norm,
                eps=eps,
                weight_offset=offset,
            )

        return call

    def _bind_attention(self, step: AttentionStep) -> Call:
        qkv, out, group, kv = self._slots[step.qkv], self._slots[step.out], step.group, self._kv[step.layer]
        heads, scale, window, kernel = step.num_heads, step.scale, step.window or 0, self._ops.paged_attention
        softcap = step.softcap or 0.0

        def call(values: Values, inputs: StepInputs) -> None:
            kernel(
                values[qkv],
                values[out],
                query_starts=inputs.query_starts,
                first_positions=inputs.first_positions,
                block_tables=inputs.tables[group],
                kv=kv,
                num_heads=heads,
                scale=scale,
                window=window,
                softcap=softcap,
            )

        return call

    def _bind_activation(self, step: ActivationStep) -> Call:
        gate_up, out, kind = self._slots[step.gate_up], self._slots[step.out], step.function
        kernel = self._ops.gated_activation

        def call(values: Values, inputs: StepInputs) -> None:
            kernel(values[gate_up], values[out], kind=kind)

        return call

    def _bind_select(self, step: SelectStep) -> Call:
        x, out, kernel = self._slots[step.x], self._slots[step.out], self._ops.select_rows

        def call(values: Values, inputs: StepInputs) -> None:
            kernel(values[x], inputs.rows, values[out])

        return call

    def _bind_add(self, step: AddStep) -> Call:
        x, delta, kernel = self._slots[step.x], self._slots[step.delta], self._ops.add

        def call(values: Values, inputs: StepInputs) -> None:
            kernel(values[x], values[delta])

        return call

    def _bind_soft_cap(self, step: SoftCapStep) -> Call:
        x, cap, kernel = self._slots[step.x], step.cap, self._ops.soft_cap

        def call(values: Values, inputs: StepInputs) -> None:
            kernel(values[x], cap=cap)

        return call

    def _bind_route(self, step: RouteStep) -> Call:
        logits, out, kernel = self._slots[step.logits], self._slots[step.out], self._ops.route
        top_k, normalize = step.top_k, step.normalize

        def call(values: Values, inputs: StepInputs) -> None:
            kernel(values[logits], values[out], top_k=top_k, normalize=normalize)

        return call

    def _bind_grouped_linear(self, step: GroupedLinearStep) -> Call:
        panels, kernel = self._weight(step.weight), self._ops.grouped_linear
        x, routing, out = self._slots[step.x], self._slots[step.routing], self._slots[step.out]
        num_experts, top_k, is_routed = step.num_experts, step.top_k, step.is_routed

        def call(values: Values, inputs: StepInputs) -> None:
            kernel(
                values[x],
                panels,
                values[routing],
                values[out],
                num_experts=num_experts,
                top_k=top_k,
                is_routed=is_routed,
            )

        return call

    def _bind_combine(self, step: CombineStep) -> Call:
        x, routing, out = self._slots[step.x], self._slots[step.routing], self._slots[step.out]
        top_k, accumulate, kernel = step.top_k, step.accumulate, self._ops.combine

        def call(values: Values, inputs: StepInputs) -> None:
            kernel(values[x], values[routing], values[out], top_k=top_k, accumulate=accumulate)

        return call


def _layer_bytes(group: KVGroup, head_bytes: int) -> int:
    return 2 * group.num_kv_heads * head_bytes
