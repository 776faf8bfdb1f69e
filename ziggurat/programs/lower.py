# SPDX-License-Identifier: Apache-2.0
"""Program -> Plan: fuse, pack, order, and give every buffer a place. Pure and torch-free.

Fusions: q, k, v and gate, up become one matrix each; head norms, rotation and the KV write become one step on the fused rows; an
addition whose second operand is a fresh linear becomes that linear's accumulation into the residual stream, which is one buffer
from the embedding to the last layer.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ziggurat.programs import ops
from ziggurat.programs.formats import FP32, PANEL_WIDTH, FormatSpec
from ziggurat.programs.lifetimes import ALIGNMENT_BYTES, Interval, place
from ziggurat.programs.ops import ROWS, Op
from ziggurat.programs.plan import (
    ActivationStep,
    AttentionStep,
    Buffer,
    EmbedStep,
    Limits,
    LinearStep,
    NormStep,
    PackedWeight,
    Plan,
    QKVStep,
    SelectStep,
    Step,
)
from ziggurat.programs.program import Program
from ziggurat.units import round_up

RESIDUAL = "residual"
_PAGE_BYTES = 4096
# One row of logits as a sorted copy, its order and a probability array, in fp64 and int64: numpy's working set per row.
_SAMPLER_BYTES_PER_ENTRY = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Formats:
    """Storage formats: of matrices (vectors are always fp32) and of the KV cache."""

    weight: FormatSpec
    kv: FormatSpec


@dataclass(slots=True)
class _Lowering:
    program: Program
    formats: Formats
    steps: list[Step] = field(default_factory=list)
    weights: dict[str, PackedWeight] = field(default_factory=dict)
    weight_end: int = 0
    widths: dict[str, tuple[str, int]] = field(default_factory=dict)
    uses: dict[str, list[int]] = field(default_factory=dict)

    def pack(self, name: str, sources: list[str]) -> str:
        """Reserves a place for the concatenated rows of the sources; returns the packed name."""
        specs = [self.program.weights[source] for source in sources]
        tied = specs[0].tied_to
        if tied is not None:
            return self.pack(tied, [tied])
        if name in self.weights:
            return name
        rows = sum(spec.shape[0] for spec in specs)
        is_vector = specs[0].role == "vector"
        fmt = FP32 if is_vector else self.formats.weight
        columns = 1 if is_vector else specs[0].shape[1]
        num_bytes = fmt.num_bytes((rows if is_vector else round_up(rows, PANEL_WIDTH), columns))
        self.weights[name] = PackedWeight(
            name=name,
            sources=tuple((source, spec.shape[0]) for source, spec in zip(sources, specs, strict=True)),
            out_features=rows,
            in_features=columns,
            layout="vector" if is_vector else "panels",
            format=fmt,
            offset=self.weight_end,
            num_bytes=num_bytes,
        )
        self.weight_end = round_up(self.weight_end + num_bytes, ALIGNMENT_BYTES)
        return name

    def emit(self, step: Step, *buffers: str) -> None:
        """Appends a step that touches the named buffers."""
        for name in buffers:
            self.uses.setdefault(name, []).append(len(self.steps))
        self.steps.append(step)

    def buffer(self, name: str, width: int, leading: str = ops.TOKENS) -> str:
        self.widths[name] = (leading, width)
        return name

    def linear(self, x: str, linears: list[ops.Linear], out: str, *, accumulate: bool = False) -> None:
        """One step for linears that read the same rows; their outputs follow each other in ``out``."""
        first = linears[0]
        stem = "+".join(linear.weight.removesuffix(".weight") for linear in linears)
        weight = self.pack(f"{stem}.weight", [linear.weight for linear in linears])
        biases = [linear.bias for linear in linears if linear.bias is not None]
        assert len(biases) in (0, len(linears)), f"{first.weight}: fused linears need biases on all or none"
        bias = self.pack(f"{stem}.bias", biases) if biases else None
        self.emit(LinearStep(x=x, weight=weight, bias=bias, out=out, accumulate=accumulate), x, out)

    def norm(self, op: ops.Norm, x: str, out: str) -> None:
        weight = self.pack(op.weight, [op.weight])
        self.emit(NormStep(x=x, weight=weight, out=out, eps=op.eps, weight_offset=op.weight_offset), x, out)


def _of_kind(layer: tuple[Op, ...], kind: type[Op]) -> list[Op]:
    return [op for op in layer if isinstance(op, kind)]


def _lower_layer(low: _Lowering, layer: tuple[Op, ...]) -> None:
    """One transformer layer of the form norm, qkv, head norms, rope, append, attention, out, add, norm, gate-up, act, down, add."""
    (attention,) = [op for op in layer if isinstance(op, ops.Attention)]
    (activation,) = [op for op in layer if isinstance(op, ops.GatedActivation)]
    norms = [op for op in layer if isinstance(op, ops.Norm)]
    linears = {op.output: op for op in layer if isinstance(op, ops.Linear)}
    adds = {op.inputs[1]: op for op in layer if isinstance(op, ops.Add)}
    hidden, prefix = low.program.hidden_size, f"layer{attention.layer}"
    row_norms = [op for op in norms if not _is_head_norm(op, linears)]
    head_norms = [op for op in norms if _is_head_norm(op, linears)]
    attention_norm, mlp_norm = row_norms

    x = low.buffer(f"{prefix}.normed", hidden)
    low.norm(attention_norm, RESIDUAL, x)
    qkv_linears = [op for op in linears.values() if op.inputs[0] == attention_norm.output]
    qkv = low.buffer(f"{prefix}.qkv", sum(low.program.values[op.output].width for op in qkv_linears))
    low.linear(x, qkv_linears, qkv)
    attended = _emit_attention(low, attention, head_norms, qkv)
    (out_linear,) = [op for op in linears.values() if op.inputs[0] == attention.output]
    assert out_linear.output in adds, f"{out_linear.weight}: the attention output must be added to the residual stream"
    low.linear(attended, [out_linear], RESIDUAL, accumulate=True)

    y = low.buffer(f"{prefix}.mlp_normed", hidden)
    low.norm(mlp_norm, RESIDUAL, y)
    gate_up_linears = [linears[name] for name in activation.inputs]
    width = low.program.values[activation.output].width
    gate_up = low.buffer(f"{prefix}.gate_up", 2 * width)
    low.linear(y, gate_up_linears, gate_up)
    activated = low.buffer(f"{prefix}.activated", width)
    low.emit(ActivationStep(gate_up=gate_up, out=activated, function=activation.function), gate_up, activated)
    (down,) = [op for op in linears.values() if op.inputs[0] == activation.output]
    assert down.output in adds, f"{down.weight}: the feed-forward output must be added to the residual stream"
    low.linear(activated, [down], RESIDUAL, accumulate=True)


def _is_head_norm(op: ops.Norm, linears: dict[str, ops.Linear]) -> bool:
    return op.inputs[0] in linears


def _emit_attention(low: _Lowering, op: ops.Attention, head_norms: list[ops.Norm], qkv: str) -> str:
    q_norm, k_norm = (head_norms[0], head_norms[1]) if head_norms else (None, None)
    shape = {"num_heads": op.num_heads, "num_kv_heads": op.num_kv_heads, "head_dim": op.head_dim}
    low.emit(
        QKVStep(
            qkv=qkv,
            layer=op.layer,
            group=op.group,
            q_norm=low.pack(q_norm.weight, [q_norm.weight]) if q_norm else None,
            k_norm=low.pack(k_norm.weight, [k_norm.weight]) if k_norm else None,
            eps=q_norm.eps if q_norm else 0.0,
            weight_offset=q_norm.weight_offset if q_norm else 0.0,
            **shape,
        ),
        qkv,
    )
    out = low.buffer(f"layer{op.layer}.attended", op.num_heads * op.head_dim)
    low.emit(
        AttentionStep(qkv=qkv, out=out, layer=op.layer, group=op.group, scale=op.scale, window=op.window, **shape),
        qkv,
        out,
    )
    return out


def _lower_ends(low: _Lowering) -> None:
    """The epilogue: pick rows, norm, project to the vocabulary."""
    select, norm, head = low.program.epilogue
    assert isinstance(select, ops.SelectRows) and isinstance(norm, ops.Norm) and isinstance(head, ops.Linear)
    hidden = low.program.hidden_size
    selected = low.buffer("selected", hidden, ROWS)
    low.emit(SelectStep(x=RESIDUAL, out=selected), RESIDUAL, selected)
    final = low.buffer("final", hidden, ROWS)
    low.norm(norm, selected, final)
    low.linear(final, [head], low.buffer("logits", low.program.vocab_size, ROWS))


def _place_buffers(low: _Lowering, limits: Limits) -> tuple[dict[str, Buffer], int]:
    rows = {ops.TOKENS: limits.max_num_batched_tokens, ROWS: limits.max_num_seqs}
    intervals: dict[str, Interval] = {}
    for name, used in low.uses.items():
        leading, width = low.widths[name]
        # The result is read after the last step, by the sampler.
        last = len(low.steps) + 1 if name == "logits" else used[-1] + 1
        intervals[name] = Interval(first=used[0], last=last, num_bytes=FP32.num_bytes((rows[leading], width)))
    offsets, total = place(intervals)
    buffers = {
        name: Buffer(
            name=name,
            leading=low.widths[name][0],
            max_rows=rows[low.widths[name][0]],
            width=low.widths[name][1],
            offset=offsets[name],
            num_bytes=intervals[name].num_bytes,
        )
        for name in intervals
    }
    return buffers, total


def lower(program: Program, formats: Formats, limits: Limits) -> Plan:
    """The Plan of a serving Program.

    Args:
        program: built with ``mode="serve"``.
        formats: storage formats; activations are fp32.
        limits: sizes; max_num_batched_tokens is at least max_num_seqs, or running sequences could not all decode.
    """
    assert program.mode == "serve", "only serving Programs are lowered; training interprets the Program itself"
    low = _Lowering(program=program, formats=formats)
    (embed,) = program.prologue
    assert isinstance(embed, ops.Embed)
    low.buffer(RESIDUAL, program.hidden_size)
    low.emit(EmbedStep(weight=low.pack(embed.weight, [embed.weight]), out=RESIDUAL, scale=embed.scale), RESIDUAL)
    for layer in program.layers:
        low.weight_end = round_up(low.weight_end, _PAGE_BYTES)
        _lower_layer(low, layer)
    low.weight_end = round_up(low.weight_end, _PAGE_BYTES)
    _lower_ends(low)
    buffers, workspace_bytes = _place_buffers(low, limits)
    return Plan(
        program=program,
        limits=limits,
        steps=tuple(low.steps),
        weights=low.weights,
        weight_bytes=round_up(low.weight_end, _PAGE_BYTES),
        buffers=buffers,
        workspace_bytes=round_up(workspace_bytes, _PAGE_BYTES),
        kv_format=formats.kv,
        table_bytes=program.rope.table_bytes(limits.max_model_len),
        sampler_bytes=program.vocab_size * _SAMPLER_BYTES_PER_ENTRY,
        logits="logits",
    )
