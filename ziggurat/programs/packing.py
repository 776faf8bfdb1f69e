# SPDX-License-Identifier: Apache-2.0
"""Places of packed weights in one arena: which checkpoint tensors lie side by side, and where."""

from __future__ import annotations

from dataclasses import dataclass, field

from ziggurat.errors import UnsupportedFeature
from ziggurat.programs.formats import FP32, PANEL_WIDTH, FormatSpec
from ziggurat.programs.lifetimes import ALIGNMENT_BYTES
from ziggurat.programs.ops import ExpertLinear
from ziggurat.programs.plan import PackedWeight
from ziggurat.programs.program import Program
from ziggurat.units import round_up

PAGE_BYTES = 4096


def check_weight_format(program: Program, fmt: FormatSpec) -> None:
    """Whether a Program's matrices can be kept and computed with in a format.

    Raises:
        UnsupportedFeature: a quantized format, and experts or rows that are not whole blocks.
    """
    if not fmt.is_quantized:
        return
    feature = f"quantization:{fmt.name}"
    expert = next((op for op in program.ops() if isinstance(op, ExpertLinear)), None)
    if expert is not None:
        raise UnsupportedFeature(
            f"quantization {fmt.name}: linears of {len(expert.weights)} experts per layer run on plain numbers only; "
            f"use --quantization none",
            feature=feature,
        )
    for name, spec in program.weights.items():
        if spec.role != "vector" and spec.shape[1] % fmt.block_values:
            raise UnsupportedFeature(
                f"quantization {fmt.name}: rows of tensor {name!r} have {spec.shape[1]} values, which is no multiple of "
                f"{fmt.block_values}; use --quantization none",
                feature=feature,
            )


@dataclass(slots=True)
class Packing:
    """Places in the weight arena."""

    program: Program
    weight_format: FormatSpec
    weights: dict[str, PackedWeight] = field(default_factory=dict)
    end: int = 0

    def pack(self, *sources: str, name: str = "") -> str:
        """Reserves a place for the concatenated rows of the sources; returns the packed name. Tied weights have one place."""
        specs = [self.program.weights[source] for source in sources]
        if specs[0].tied_to is not None:
            return self.pack(specs[0].tied_to)
        name = name or "+".join(sources)
        if name in self.weights:
            return name
        rows = sum(spec.shape[0] for spec in specs)
        is_vector = specs[0].role == "vector"
        fmt = FP32 if is_vector else self.weight_format
        columns = 1 if is_vector else specs[0].shape[1]
        num_bytes = fmt.num_bytes((rows if is_vector else round_up(rows, PANEL_WIDTH), columns))
        self.weights[name] = PackedWeight(
            name=name,
            sources=tuple((source, spec.shape[0]) for source, spec in zip(sources, specs, strict=True)),
            out_features=rows,
            in_features=columns,
            layout="vector" if is_vector else "panels",
            format=fmt,
            offset=self.end,
            num_bytes=num_bytes,
        )
        self.end = round_up(self.end + num_bytes, ALIGNMENT_BYTES)
        return name

    def align(self) -> None:
        """The next weight starts on a page: a layer can be read, streamed and discarded by itself."""
        self.end = round_up(self.end, PAGE_BYTES)
