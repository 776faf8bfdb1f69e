# SPDX-License-Identifier: Apache-2.0
"""What is asked of an export; apart, so that a command line can be read without numpy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ziggurat.engine.config import option
from ziggurat.programs.formats import BF16, COMPUTED_BLOCKS, FP16, FP32, Q4_0, Q8_0, FormatSpec

EXPORT_FORMATS: Mapping[str, FormatSpec] = {"f32": FP32, "f16": FP16, "bf16": BF16, "q8_0": Q8_0, "q4_0": Q4_0}
"""Formats that are written, by llama.cpp's names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """Which file to write, and how."""

    gguf: Path | None = option(None, "the GGUF file to write, for llama.cpp and its relatives", group="export")
    type: str = option("f16", "format of matrices; vectors stay f32", choices=tuple(EXPORT_FORMATS), group="export")

    @property
    def spec(self) -> FormatSpec:
        """The format of matrices."""
        return EXPORT_FORMATS[self.type]


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeOptions:
    """Which file to write, and in how many bits."""

    output: Path | None = option(None, "the GGUF file to write", group="quantize")
    quantization: str = option(
        "q4_0",
        "of matrices: 8.5 or 4.5 bits per value, scales included",
        choices=tuple(COMPUTED_BLOCKS),
        group="quantize",
    )
    overwrite: bool = option(False, "replace OUTPUT if it is there", group="quantize")
    format: str = option("text", "of the report", choices=("text", "json"), group="quantize")

    @property
    def spec(self) -> FormatSpec:
        """The format of matrices."""
        return COMPUTED_BLOCKS[self.quantization]
