# SPDX-License-Identifier: Apache-2.0
"""Program -> Plan: fuse, pack, order, and give every buffer a place. Pure and torch-free.

One pass over the operations with peephole fusions; no architecture is known here:

- linears that read the same rows and feed one attention (q, k, v) or one gated activation (gate, up) become one matrix;
- head norms, rotation and the KV write become one step on the fused rows;
- the gate and up matrices of all experts become one stack;
- ``a + linear(..)`` where a is not read again becomes that linear's accumulation into a's buffer, so the residual stream is one
  buffer from the embedding to the last layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ziggurat.programs import ops
from ziggurat.programs.formats import FP32, FormatSpec, scratch_width
from ziggurat.programs.lifetimes import Interval, place
from ziggurat.programs.ops import ROUTED, ROWS, Op
from ziggurat.programs.packing import PAGE_BYTES, Packing, check_weight_format
from ziggurat.programs.plan import (
    ActivationStep,
    AddStep,
    AttentionStep,
    Buffer,
    CombineStep,
    EmbedStep,
    GroupedLinearStep,
    Limits,
    LinearStep,
    NormStep,
    Plan,
    QKVStep,
    RouteStep,
    SelectStep,
    SoftCapStep,
    Step,
)
from ziggurat.programs.program import Program
from ziggurat.programs.streaming import layer_spans
from ziggurat.programs.tails import with_tails
from ziggurat.units import round_up

# One row of logits as a sorted copy, its order and a probability array, in fp64 and int64: numpy's working set per row.
_SAMPLER_BYTES_PER_ENTRY = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Formats:
    """Storage formats: of matrices (vectors are always fp32) and of the KV cache."""

    weight: FormatSpec
    kv: FormatSpec


class _Lowering:
    """The pass. ``buffer_of`` maps values to the buffers that hold them; a fused value's buffer holds its neighbours too."""

    def __init__(self, program: Program, formats: Formats) -> None:
        self.program = program
        self.packing = Packing(program, formats.weight)
        self.steps: list[Step] = []
        self.layer_starts: list[tuple[int, int]] = []  # see `streaming.layer_spans`
        self.shapes: dict[str, tuple[str, int]] = {}
        self.uses: dict[str, list[int]] = {}
        self.buffer_of: dict[str, str] = {}
        self.ops = list(program.ops())
        self.consumers: dict[str, list[int]] = {}
        for index, op in enumerate(self.ops):
            for value in op.inputs:
                self.consumers.setdefault(value, []).append(index)
        self.attention_of_layer = {op.layer: op for op in self.ops if isinstance(op, ops.Attention)}
        self.done: set[int] = set()

    def new_buffer(self, name: str, values: tuple[str, ...]) -> str:
        """One buffer for values that lie side by side in its rows."""
        specs = [self.program.values[value] for value in values]
        self.shapes[name] = (specs[0].leading, sum(spec.width for spec in specs))
        self.buffer_of.update(dict.fromkeys(values, name))
        return name

    def emit(self, step: Step, *buffers: str) -> None:
        """Appends a step that touches the named buffers."""
        for name in buffers:
            self.uses.setdefault(name, []).append(len(self.steps))
        self.steps.append(step)

    def next_op(self, value: str) -> Op:
        """The one operation that reads a value."""
        (index,) = self.consumers[value]
        return self.ops[index]

    def run(self) -> None:
        """Lower every operation once, in order."""
        layer_starts = {id(layer[0]) for layer in self.program.layers} | {id(self.program.epilogue[0])}
        for index, op in enumerate(self.ops):
            if id(op) in layer_starts:
                self.packing.align()
                self.layer_starts.append((len(self.steps), self.packing.end))
            if index not in self.done:
                self.lower_op(index, op)

    def lower_op(self, index: int, op: Op) -> None:
        """Emit the step of an operation that no earlier step has taken in."""
        match op:
            case ops.Embed():
                out = self.new_buffer("residual", (op.output,))
                self.emit(EmbedStep(weight=self.packing.pack(op.weight), out=out, scale=op.scale), out)
            case ops.Norm():
                self.norm(op)
            case ops.Linear():
                self.linear(index, op)
            case ops.Attention():
                self.attention(op)
            case ops.GatedActivation():
                gate_up, out = self.buffer_of[op.inputs[0]], self.new_buffer(op.output, (op.output,))
                assert self.buffer_of[op.inputs[1]] == gate_up, f"{op}: gate and up are not in one buffer"
                self.emit(ActivationStep(gate_up=gate_up, out=out, function=op.function), gate_up, out)
            case ops.SelectRows():
                x, out = self.buffer_of[op.inputs[0]], self.new_buffer(op.output, (op.output,))
                self.emit(SelectStep(x=x, out=out), x, out)
            case ops.Add():
                self.add(index, op)
            case ops.SoftCap():
                x = self.in_place(index, op.inputs[0], op.output)
                self.emit(SoftCapStep(x=x, cap=op.cap), x)
            case ops.Route():
                x, out = self.buffer_of[op.inputs[0]], self.new_buffer(op.output, (op.output,))
                self.emit(RouteStep(logits=x, out=out, top_k=op.top_k, normalize=op.normalize), x, out)
            case ops.ExpertLinear():
                self.expert_linear(index, op)
            case ops.Combine():
                self.combine(index, op)
            case _:
                raise AssertionError(f"{op} has no lowering of its own and no fusion took it in")

    def in_place(self, index: int, value: str, output: str) -> str:
        """The buffer of a value that is not read after operation ``index``; from there on it holds ``output``."""
        assert all(i <= index for i in self.consumers[value]), f"{value} is read again after it was overwritten"
        self.buffer_of[output] = self.buffer_of[value]
        return self.buffer_of[value]

    def add(self, index: int, op: ops.Add) -> None:
        """An addition that no linear took in: into the buffer of its first operand."""
        x, delta = self.in_place(index, op.inputs[0], op.output), self.buffer_of[op.inputs[1]]
        self.emit(AddStep(x=x, delta=delta), x, delta)

    def expert_linear(self, index: int, op: ops.ExpertLinear) -> None:
        """Matrices of all experts, with those of the sibling that meets it in the same activation: [gate 0 | up 0 | gate 1 | ..]."""
        group = [op]
        target = self.gated_of(op)
        for other_index in self.consumers[op.inputs[0]]:
            other = self.ops[other_index]
            if (
                target
                and other_index > index
                and isinstance(other, ops.ExpertLinear)
                and self.gated_of(other) is target
            ):
                group.append(other)
        self.done.update(self.consumers_index(member) for member in group)
        out = self.new_buffer(self.fused_name(group), tuple(member.output for member in group))
        sources = [member.weights[e] for e in range(len(op.weights)) for member in group]
        weight = self.packing.pack(*sources, name=f"{out}.experts")
        x, routing = (self.buffer_of[value] for value in op.inputs)
        step = GroupedLinearStep(
            x=x,
            routing=routing,
            weight=weight,
            out=out,
            num_experts=len(op.weights),
            top_k=self.program.top_k,
            is_routed=self.program.values[op.inputs[0]].leading == ROUTED,
        )
        self.emit(step, x, routing, out)

    def combine(self, index: int, op: ops.Combine) -> None:
        """The weighted sum over a token's experts, into the residual stream where an addition follows."""
        accumulated = self.accumulation(index, op)
        out = accumulated or self.new_buffer(op.output, (op.output,))
        x, routing = (self.buffer_of[value] for value in op.inputs)
        is_sum = accumulated is not None
        self.emit(
            CombineStep(x=x, routing=routing, out=out, top_k=self.program.top_k, accumulate=is_sum), x, routing, out
        )

    def norm(self, op: ops.Norm) -> None:
        """A norm of whole rows; norms of heads are part of the QKV step."""
        x, out = self.buffer_of[op.inputs[0]], self.new_buffer(op.output, (op.output,))
        weight = self.packing.pack(op.weight)
        self.emit(NormStep(x=x, weight=weight, out=out, eps=op.eps, weight_offset=op.weight_offset), x, out)

    def linear(self, index: int, op: ops.Linear) -> None:
        """A linear, together with its fusible neighbours and a residual addition that follows it."""
        group = self.fusible(index, op)
        self.done.update(self.consumers_index(member) for member in group)
        accumulated = self.accumulation(index, op) if len(group) == 1 else None
        if accumulated is not None:
            out = accumulated
        else:
            out = self.new_buffer(self.fused_name(group), tuple(member.output for member in group))
        x = self.buffer_of[op.inputs[0]]
        biases = [member.bias for member in group if member.bias is not None]
        assert len(biases) in (0, len(group)), f"{op.weight}: fused linears need biases on all or none"
        weight = self.packing.pack(*(member.weight for member in group))
        bias = self.packing.pack(*biases) if biases else None
        scratch = self.scratch(weight, x)
        is_sum = accumulated is not None
        step = LinearStep(x=x, weight=weight, bias=bias, out=out, accumulate=is_sum, scratch=scratch)
        self.emit(step, x, out, *([scratch] if scratch else []))
        if isinstance(self.attention_of(op), ops.Attention):
            self.qkv(group, out)

    def scratch(self, weight: str, x: str) -> str | None:
        """A buffer for the quantized rows of x, where the weight is quantized; it lives for one step."""
        packed = self.packing.weights[weight]
        if not packed.format.is_quantized:
            return None
        name = f"{weight}.rows"
        self.shapes[name] = (self.shapes[x][0], scratch_width(packed.in_features))
        return name

    def consumers_index(self, op: Op) -> int:
        """Where an operation stands."""
        return next(i for i in self.consumers[op.inputs[0]] if self.ops[i] is op)

    def fusible(self, index: int, op: ops.Linear) -> list[ops.Linear]:
        """The linears of the same input whose outputs meet in the same attention or gated activation, this one first."""
        target = self.attention_of(op) or self.gated_of(op)
        group = [op]
        for other_index in self.consumers[op.inputs[0]]:
            other = self.ops[other_index]
            if other_index <= index or target is None or not isinstance(other, ops.Linear):
                continue
            if (self.attention_of(other) or self.gated_of(other)) is target:
                group.append(other)
        return group

    def gated_of(self, op: Op) -> Op | None:
        """The gated activation that reads this linear, if one does."""
        readers = [self.ops[i] for i in self.consumers.get(op.output, [])]
        return readers[0] if len(readers) == 1 and isinstance(readers[0], ops.GatedActivation) else None

    def attention_of(self, op: Op) -> Op | None:
        """The attention whose queries, keys or values this linear makes, directly or through head norm and rotation."""
        value = op.output
        while True:
            readers = [self.ops[i] for i in self.consumers.get(value, [])]
            if len(readers) != 1:
                return None
            reader = readers[0]
            if isinstance(reader, ops.Attention):
                return reader
            if isinstance(reader, ops.KVAppend):
                return self.attention_of_layer[reader.layer]
            if isinstance(reader, ops.Rope) or (isinstance(reader, ops.Norm) and self.is_head_norm(reader)):
                value = reader.output
            else:
                return None

    def is_head_norm(self, op: ops.Norm) -> bool:
        """Whether the norm goes over parts of its rows."""
        return op.span < self.program.values[op.inputs[0]].width or isinstance(self.next_op(op.output), ops.Rope)

    def fused_name(self, group: Sequence[ops.Linear | ops.ExpertLinear]) -> str:
        """``layer3.qkv`` and ``layer3.gate_up`` by what meets there; a lone linear's buffer is called as its value."""
        target = self.attention_of(group[0])
        if isinstance(target, ops.Attention):
            return f"layer{target.layer}.qkv"
        return group[0].output if len(group) == 1 else f"{group[0].output}_{group[1].output.rsplit('.', 1)[-1]}"

    def accumulation(self, index: int, op: Op) -> str | None:
        """The buffer into which this linear may add: that of ``a`` in ``a + linear`` when nobody reads a after the linear but the sum."""
        readers = self.consumers.get(op.output, [])
        if len(readers) != 1 or not isinstance(self.ops[readers[0]], ops.Add):
            return None
        addition = self.ops[readers[0]]
        other = addition.inputs[0] if addition.inputs[1] == op.output else addition.inputs[1]
        if other == op.output or any(i > index and i != readers[0] for i in self.consumers[other]):
            return None
        self.done.add(readers[0])
        self.buffer_of[addition.output] = self.buffer_of[other]
        return self.buffer_of[other]

    def qkv(self, group: list[ops.Linear], qkv: str) -> None:
        """Head norms, rotation and KV write of the fused rows, in the order q, k, v."""
        attention = self.attention_of(group[0])
        assert isinstance(attention, ops.Attention) and len(group) == 3, (
            f"{group[0].weight}: attention needs q, k and v"
        )
        norms: list[ops.Norm | None] = []
        rope = 0
        for member in group[:2]:
            reader, norm = self.next_op(member.output), None
            if isinstance(reader, ops.Norm):
                norm, reader = reader, self.next_op(reader.output)
            assert isinstance(reader, ops.Rope), f"{member.weight}: queries and keys are rotated"
            norms.append(norm)
            rope = reader.rope
            self.done.update(self.consumers_index(o) for o in (norm, reader) if o is not None)
        (append,) = (i for i in self.consumers[group[2].output] if isinstance(self.ops[i], ops.KVAppend))
        self.done.add(append)
        self.buffer_of[attention.inputs[0]] = qkv
        q_norm, k_norm = norms
        self.emit(
            QKVStep(
                qkv=qkv,
                layer=attention.layer,
                group=attention.group,
                num_heads=attention.num_heads,
                num_kv_heads=attention.num_kv_heads,
                head_dim=attention.head_dim,
                rope=rope,
                q_norm=self.packing.pack(q_norm.weight) if q_norm else None,
                k_norm=self.packing.pack(k_norm.weight) if k_norm else None,
                eps=q_norm.eps if q_norm else 0.0,
                weight_offset=q_norm.weight_offset if q_norm else 0.0,
            ),
            qkv,
        )

    def attention(self, op: ops.Attention) -> None:
        """Attention of the query part of the fused rows."""
        qkv, out = self.buffer_of[op.inputs[0]], self.new_buffer(op.output, (op.output,))
        self.emit(
            AttentionStep(
                qkv=qkv,
                out=out,
                layer=op.layer,
                group=op.group,
                num_heads=op.num_heads,
                num_kv_heads=op.num_kv_heads,
                head_dim=op.head_dim,
                scale=op.scale,
                window=op.window,
                softcap=op.softcap,
            ),
            qkv,
            out,
        )

    def place_buffers(self, limits: Limits, result: str) -> tuple[dict[str, Buffer], int]:
        """Offsets in the workspace. The result is read after the last step; so is what rows are selected from, further ones too."""
        tokens = limits.max_num_batched_tokens
        rows = {ops.TOKENS: tokens, ROUTED: tokens * self.program.top_k, ROWS: limits.max_num_seqs}
        kept = {result, *(step.x for step in self.steps if isinstance(step, SelectStep))}
        intervals: dict[str, Interval] = {}
        for name, used in self.uses.items():
            leading, width = self.shapes[name]
            last = len(self.steps) + 1 if name in kept else used[-1] + 1
            intervals[name] = Interval(first=used[0], last=last, num_bytes=FP32.num_bytes((rows[leading], width)))
        offsets, total = place(intervals)
        buffers = {
            name: Buffer(
                name=name,
                leading=self.shapes[name][0],
                max_rows=rows[self.shapes[name][0]],
                width=self.shapes[name][1],
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

    Raises:
        UnsupportedFeature: see `check_weight_format`.
    """
    check_weight_format(program, formats.weight)
    assert program.mode == "serve", "only serving Programs are lowered; training interprets the Program itself"
    low = _Lowering(program, formats)
    low.run()
    logits = low.buffer_of[program.epilogue[-1].output]
    buffers, workspace_bytes = low.place_buffers(limits, logits)
    plan = Plan(
        program=program,
        limits=limits,
        steps=tuple(low.steps),
        weights=low.packing.weights,
        weight_bytes=round_up(low.packing.end, PAGE_BYTES),
        layer_spans=layer_spans(low.layer_starts),
        buffers=buffers,
        workspace_bytes=round_up(workspace_bytes, PAGE_BYTES),
        kv_format=formats.kv,
        table_bytes=program.table_bytes(limits.max_model_len),
        sampler_bytes=program.vocab_size * _SAMPLER_BYTES_PER_ENTRY,
        logits=logits,
    )
    return with_tails(plan)
