# SPDX-License-Identifier: Apache-2.0
"""A torch interpreter of training Programs: runs the ops functionally, so that autograd differentiates them.

Shapes: B sequences of T tokens; an activation of the Program is [B * T, n] with the sequences one after another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ziggurat.programs import ops
from ziggurat.programs.program import Program
from ziggurat.training.lowrank import LowRankUpdates

_STRIP_TOKENS = 256
_STRIPS_UP_TO_TOKENS = 2048


class ProgramModel(nn.Module):
    """Holds the weights of a Program (fp32, by Hugging Face's names) and runs it on whole sequences.

    Every sequence starts at position 0 and is as long as the others; padding belongs to the right, where a causal
    model does not see it.

    Attributes:
        updates: low-rank updates that are added to linears, or None.
    """

    def __init__(self, program: Program) -> None:
        super().__init__()
        if program.mode != "train":
            raise ValueError(f"the interpreter needs a Program with mode='train', not {program.mode!r}")
        self.program = program
        self.updates: LowRankUpdates | None = None
        self._slots: dict[str, str] = {}
        for name, spec in program.weights.items():
            if spec.tied_to is None:
                self._slots[name] = name.replace(".", "__")
                self.register_parameter(self._slots[name], nn.Parameter(torch.zeros(spec.shape)))
        positions = torch.arange(program.max_position, dtype=torch.float64)[:, None]
        for index, rope in enumerate(program.ropes):
            angles = positions * torch.tensor(rope.inverse_frequencies(), dtype=torch.float64)
            for name, table in (("cosines", angles.cos()), ("sines", angles.sin())):
                self.register_buffer(f"{name}{index}", (table * rope.attention_scaling).float(), persistent=False)

    def weight(self, name: str) -> nn.Parameter:
        """The parameter behind a Hugging Face name; a tied name gives the parameter it shares."""
        parameter = getattr(self, self._slots[self.program.weights[name].tied_to or name])
        assert isinstance(parameter, nn.Parameter)
        return parameter

    def named_weights(self) -> dict[str, nn.Parameter]:
        """Stored weights by Hugging Face's names; tied ones appear once, under the name they share."""
        return {name: self.weight(name) for name in self._slots}

    def load_weights(self, tensors: Mapping[str, Tensor]) -> None:
        """Copies tensors of any float type into the weights.

        Raises:
            KeyError: a weight is absent.
            ValueError: a shape differs.
        """
        with torch.no_grad():
            for name, parameter in self.named_weights().items():
                if tensors[name].shape != parameter.shape:
                    raise ValueError(
                        f"{name}: shape {tuple(tensors[name].shape)}, Program has {tuple(parameter.shape)}"
                    )
                parameter.copy_(tensors[name])

    def forward(
        self, ids: Tensor, rows: Tensor | None = None, observe: Callable[[ops.Op, Tensor], None] | None = None
    ) -> Tensor:
        """Logits for token ids.

        Args:
            ids: [B, T] int64, T at most the Program's max_position.
            rows: indices [R] into the B * T flattened positions whose logits are wanted; None wants all.
            observe: is shown every operation and its result, in order of execution.

        Returns:
            [R, vocab] (or [B * T, vocab]).
        """
        values: dict[str, Tensor] = {}
        for op in self.program.ops():
            values[op.output] = _RUN[type(op)](self, op, values, ids, rows)
            if observe is not None:
                observe(op, values[op.output])
        return values[self.program.epilogue[-1].output]


_Runner = Callable[[ProgramModel, ops.Op, dict[str, Tensor], Tensor, "Tensor | None"], Tensor]


def _embed(model: ProgramModel, op: ops.Op, values: dict[str, Tensor], ids: Tensor, rows: Tensor | None) -> Tensor:
    assert isinstance(op, ops.Embed)
    embedded = F.embedding(ids.reshape(-1), model.weight(op.weight))
    return embedded if op.scale == 1.0 else embedded * op.scale


def _norm(model: ProgramModel, op: ops.Op, values: dict[str, Tensor], ids: Tensor, rows: Tensor | None) -> Tensor:
    assert isinstance(op, ops.Norm)
    x = values[op.inputs[0]]
    weight: Tensor = model.weight(op.weight)
    if op.weight_offset:
        weight = weight + op.weight_offset
    spans = x.reshape(*x.shape[:-1], -1, op.span)
    return F.rms_norm(spans, (op.span,), weight, op.eps).reshape(x.shape)


def _linear(model: ProgramModel, op: ops.Op, values: dict[str, Tensor], ids: Tensor, rows: Tensor | None) -> Tensor:
    assert isinstance(op, ops.Linear)
    bias = None if op.bias is None else model.weight(op.bias)
    x = values[op.inputs[0]]
    product = F.linear(x, model.weight(op.weight), bias)
    delta = None if model.updates is None else model.updates.delta(op.weight, x)
    return product if delta is None else product + delta


def _rope(model: ProgramModel, op: ops.Op, values: dict[str, Tensor], ids: Tensor, rows: Tensor | None) -> Tensor:
    assert isinstance(op, ops.Rope)
    batch, length = ids.shape
    x = values[op.inputs[0]].view(batch, length, op.num_heads, op.head_dim)
    half = model.program.ropes[op.rope].dim // 2
    cosines, sines = (model.get_buffer(f"{name}{op.rope}")[:length, None, :] for name in ("cosines", "sines"))
    first, second = x[..., :half], x[..., half : 2 * half]
    parts = [first * cosines - second * sines, second * cosines + first * sines]
    if 2 * half < op.head_dim:
        parts.append(x[..., 2 * half :])
    return torch.cat(parts, dim=-1).reshape(batch * length, -1)


def _attention(model: ProgramModel, op: ops.Op, values: dict[str, Tensor], ids: Tensor, rows: Tensor | None) -> Tensor:
    assert isinstance(op, ops.Attention)
    batch, length = ids.shape
    heads = (op.num_heads, op.num_kv_heads, op.num_kv_heads)
    value = values[op.inputs[2]]
    # Keys and queries come out of the rotation in fp32; under autocast the values are narrower, and one type is needed.
    q, k, v = (
        values[name].to(value.dtype).view(batch, length, count, op.head_dim).transpose(1, 2)
        for name, count in zip(op.inputs, heads, strict=True)
    )
    needs_strips = (op.window or length) < length or op.softcap is not None
    if needs_strips or (q.dtype == torch.bfloat16 and length <= _STRIPS_UP_TO_TOKENS):
        attended = causal_attention(q * op.scale, k, v, op.window, op.softcap)
    else:
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=op.scale, enable_gqa=True)
    return attended.transpose(1, 2).reshape(batch * length, -1)


def causal_attention(q: Tensor, k: Tensor, v: Tensor, window: int | None, softcap: float | None = None) -> Tensor:
    """Causal attention of scaled queries q [B, H, T, D] over k, v [B, G, T, D], H a multiple of G; [B, H, T, D].

    Plain products over strips of queries, each against the keys it can see. In bf16, forward and backward together take
    half to two thirds of the time of torch 2.13's CPU flash kernel at 256 to 2,048 tokens (one Zen 4 core); in fp32 and
    at 4,096 tokens that kernel is the faster one.
    """
    batch, heads, length, width = q.shape
    groups = k.shape[1]
    strips = []
    for start in range(0, length, _STRIP_TOKENS):
        stop = min(length, start + _STRIP_TOKENS)
        first = 0 if window is None else max(0, start - window + 1)
        strip = q[:, :, start:stop].reshape(batch, groups, -1, width)
        scores = (strip @ k[:, :, first:stop].transpose(-1, -2)).view(batch, groups, -1, stop - start, stop - first)
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        distance = torch.arange(start, stop)[:, None] - torch.arange(first, stop)[None, :]
        is_hidden = distance < 0 if window is None else (distance < 0) | (distance >= window)
        shares = torch.softmax(
            scores + torch.zeros_like(distance, dtype=q.dtype).masked_fill_(is_hidden, -torch.inf), -1
        )
        out = shares.view(batch, groups, -1, stop - first) @ v[:, :, first:stop]
        strips.append(out.view(batch, heads, stop - start, width))
    return torch.cat(strips, dim=2)


def _gated(model: ProgramModel, op: ops.Op, values: dict[str, Tensor], ids: Tensor, rows: Tensor | None) -> Tensor:
    assert isinstance(op, ops.GatedActivation)
    gate, up = values[op.inputs[0]], values[op.inputs[1]]
    activated = F.silu(gate) if op.function == "silu" else F.gelu(gate, approximate="tanh")
    return activated * up


def _add(model: ProgramModel, op: ops.Op, values: dict[str, Tensor], ids: Tensor, rows: Tensor | None) -> Tensor:
    return values[op.inputs[0]] + values[op.inputs[1]]


def _select(model: ProgramModel, op: ops.Op, values: dict[str, Tensor], ids: Tensor, rows: Tensor | None) -> Tensor:
    x = values[op.inputs[0]]
    return x if rows is None else x[rows]


def _soft_cap(model: ProgramModel, op: ops.Op, values: dict[str, Tensor], ids: Tensor, rows: Tensor | None) -> Tensor:
    assert isinstance(op, ops.SoftCap)
    return op.cap * torch.tanh(values[op.inputs[0]] / op.cap)


def _route(model: ProgramModel, op: ops.Op, values: dict[str, Tensor], ids: Tensor, rows: Tensor | None) -> Tensor:
    """Gradients go through the probabilities; which experts are chosen has none."""
    assert isinstance(op, ops.Route)
    softened = values[op.inputs[0]].float().softmax(-1)
    probabilities, experts = torch.sort(softened, dim=-1, descending=True, stable=True)
    chosen = probabilities[:, : op.top_k]
    if op.normalize:
        chosen = chosen / chosen.sum(-1, keepdim=True)
    return torch.cat((experts[:, : op.top_k].to(chosen.dtype), chosen), dim=-1)


def _expert_linear(
    model: ProgramModel, op: ops.Op, values: dict[str, Tensor], ids: Tensor, rows: Tensor | None
) -> Tensor:
    """Rows in the order of their experts, one product per expert, and back."""
    assert isinstance(op, ops.ExpertLinear)
    x, routing = values[op.inputs[0]], values[op.inputs[1]]
    top_k = routing.shape[1] // 2
    experts = routing[:, :top_k].detach().reshape(-1).long()
    order = experts.argsort(stable=True)
    is_routed = model.program.values[op.inputs[0]].leading == ops.ROUTED
    sorted_rows = x[order if is_routed else order // top_k]
    parts = sorted_rows.split(experts.bincount(minlength=len(op.weights)).tolist())
    products = [F.linear(part, model.weight(name)) for part, name in zip(parts, op.weights, strict=True)]
    return torch.cat(products)[order.argsort()]


def _combine(model: ProgramModel, op: ops.Op, values: dict[str, Tensor], ids: Tensor, rows: Tensor | None) -> Tensor:
    assert isinstance(op, ops.Combine)
    x, routing = values[op.inputs[0]], values[op.inputs[1]]
    top_k = routing.shape[1] // 2
    weighted = x.view(-1, top_k, x.shape[1]) * routing[:, top_k:, None]
    return weighted.sum(1)


_RUN: dict[type[ops.Op], _Runner] = {
    ops.Embed: _embed,
    ops.Norm: _norm,
    ops.Linear: _linear,
    ops.Rope: _rope,
    ops.Attention: _attention,
    ops.GatedActivation: _gated,
    ops.Add: _add,
    ops.SelectRows: _select,
    ops.SoftCap: _soft_cap,
    ops.Route: _route,
    ops.ExpertLinear: _expert_linear,
    ops.Combine: _combine,
}
