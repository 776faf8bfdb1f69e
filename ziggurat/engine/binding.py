# SPDX-License-Identifier: Apache-2.0
"""From the steps of a Plan to calls: each has its weights, its buffers and its kernel at hand, and gets what changes from step to step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ziggurat.engine.inputs import StepInputs
from ziggurat.kernels import KernelOps, KVLayer
from ziggurat.programs.plan import (
    ActivationStep,
    AddStep,
    AttentionStep,
    CombineStep,
    EmbedStep,
    GroupedLinearStep,
    LinearStep,
    NormStep,
    QKVStep,
    RouteStep,
    SelectStep,
    SoftCapStep,
    Step,
)

Values = Sequence[Tensor]
"""Activation buffers cut to the rows of this step, by slot number."""
Call = Callable[[Values, StepInputs], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepBinder:
    """Binds steps to one engine's memory.

    Attributes:
        weights: packed weights by name.
        slots: buffers by name, as numbers of `Values`.
        kv: by layer.
        ropes: cosines and sines by number.
    """

    ops: KernelOps
    weights: Mapping[str, Tensor]
    slots: Mapping[str, int]
    kv: Mapping[int, KVLayer]
    ropes: Sequence[tuple[Tensor, Tensor]]

    def bind(self, step: Step) -> Call:
        """The call of a step."""
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
        return None if name is None else self.weights[name]

    def _bind_embed(self, step: EmbedStep) -> Call:
        panels, out, scale, kernel = self._weight(step.weight), self.slots[step.out], step.scale, self.ops.embed_rows

        def call(values: Values, inputs: StepInputs) -> None:
            kernel(inputs.token_ids, panels, values[out], scale=scale)

        return call

    def _bind_norm(self, step: NormStep) -> Call:
        weight, x, out = self._weight(step.weight), self.slots[step.x], self.slots[step.out]
        eps, offset, kernel = step.eps, step.weight_offset, self.ops.rms_norm

        def call(values: Values, inputs: StepInputs) -> None:
            kernel(values[x], weight, values[out], eps=eps, weight_offset=offset)

        return call

    def _bind_linear(self, step: LinearStep) -> Call:
        panels, bias = self._weight(step.weight), self._weight(step.bias)
        x, out, accumulate, kernel = self.slots[step.x], self.slots[step.out], step.accumulate, self.ops.linear
        scratch = None if step.scratch is None else self.slots[step.scratch]
        name, lora = step.weight, self.ops.lora

        def call(values: Values, inputs: StepInputs) -> None:
            rows = None if scratch is None else values[scratch]
            kernel(values[x], panels, values[out], bias=bias, accumulate=accumulate, scratch=rows)
            if inputs.adapters and (entries := inputs.adapters.get(name)) is not None:
                lora(values[x], values[out], *entries)

        return call

    def _bind_qkv(self, step: QKVStep) -> Call:
        qkv, group, kernel = self.slots[step.qkv], step.group, self.ops.qkv_post
        kv = self.kv[step.layer].tail or self.kv[step.layer]
        q_norm, k_norm = self._weight(step.q_norm), self._weight(step.k_norm)
        (cos, sin), heads, eps, offset = self.ropes[step.rope], step.num_heads, step.eps, step.weight_offset

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
        qkv, out, group, kv = self.slots[step.qkv], self.slots[step.out], step.group, self.kv[step.layer]
        heads, scale, window, kernel = step.num_heads, step.scale, step.window or 0, self.ops.paged_attention
        softcap, tail_group, pack = step.softcap or 0.0, step.tail_group, self.ops.pack_kv

        def call(values: Values, inputs: StepInputs) -> None:
            arrays = {
                "query_starts": inputs.query_starts,
                "first_positions": inputs.first_positions,
                "block_tables": inputs.tables[group],
            }
            tails = None if tail_group is None else inputs.tables[tail_group]
            if tails is not None:
                pack(kv, tail_tables=tails, **arrays)
            kernel(
                values[qkv],
                values[out],
                **arrays,
                kv=kv,
                num_heads=heads,
                scale=scale,
                window=window,
                softcap=softcap,
                tail_tables=tails,
            )

        return call

    def _bind_activation(self, step: ActivationStep) -> Call:
        gate_up, out, kind = self.slots[step.gate_up], self.slots[step.out], step.function
        kernel = self.ops.gated_activation

        def call(values: Values, inputs: StepInputs) -> None:
            kernel(values[gate_up], values[out], kind=kind)

        return call

    def _bind_select(self, step: SelectStep) -> Call:
        x, out, kernel = self.slots[step.x], self.slots[step.out], self.ops.select_rows

        def call(values: Values, inputs: StepInputs) -> None:
            kernel(values[x], inputs.rows, values[out])

        return call

    def _bind_add(self, step: AddStep) -> Call:
        x, delta, kernel = self.slots[step.x], self.slots[step.delta], self.ops.add

        def call(values: Values, inputs: StepInputs) -> None:
            kernel(values[x], values[delta])

        return call

    def _bind_soft_cap(self, step: SoftCapStep) -> Call:
        x, cap, kernel = self.slots[step.x], step.cap, self.ops.soft_cap

        def call(values: Values, inputs: StepInputs) -> None:
            kernel(values[x], cap=cap)

        return call

    def _bind_route(self, step: RouteStep) -> Call:
        logits, out, kernel = self.slots[step.logits], self.slots[step.out], self.ops.route
        top_k, normalize = step.top_k, step.normalize

        def call(values: Values, inputs: StepInputs) -> None:
            kernel(values[logits], values[out], top_k=top_k, normalize=normalize)

        return call

    def _bind_grouped_linear(self, step: GroupedLinearStep) -> Call:
        panels, kernel = self._weight(step.weight), self.ops.grouped_linear
        x, routing, out = self.slots[step.x], self.slots[step.routing], self.slots[step.out]
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
        x, routing, out = self.slots[step.x], self.slots[step.routing], self.slots[step.out]
        top_k, accumulate, kernel = step.top_k, step.accumulate, self.ops.combine

        def call(values: Values, inputs: StepInputs) -> None:
            kernel(values[x], values[routing], values[out], top_k=top_k, accumulate=accumulate)

        return call
