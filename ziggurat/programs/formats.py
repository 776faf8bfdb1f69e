# SPDX-License-Identifier: Apache-2.0
"""Number formats as data: how many bytes a shape takes. Codecs that fill those bytes live in higher rooms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ziggurat.errors import ConfigError
from ziggurat.registry import nearest

PANEL_WIDTH = 16
"""Output rows that lie side by side in a packed weight: panels are ``[ceil(N / 16)][K][16]``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FormatSpec:
    """A storage format.

    Attributes:
        name: the short name people type (``bf16``).
        bits: bits per value, scales included.
        safetensors: the dtype's name in safetensors headers; empty where it has none.
        torch: the dtype's name in torch, without the ``torch.`` prefix; empty where it has none.
        block_values: values that share a scale: rows are multiples of it. 1 for formats that are plain numbers.
        block_tokens: tokens of keys and values that are packed together, when all of them are there; until then they are kept in fp32,
            in a block of their own (the tail). 0 for formats whose tokens stand alone.
    """

    name: str
    bits: float
    safetensors: str = ""
    torch: str = ""
    block_values: int = 1
    block_tokens: int = 0

    @property
    def is_quantized(self) -> bool:
        """Whether values share scales: rows are whole blocks, and a value by itself has no bytes."""
        return self.block_values > 1

    def num_bytes(self, shape: Sequence[int]) -> int:
        """Bytes of an array of that shape."""
        return math.ceil(math.prod(shape) * self.bits / 8)


FP32 = FormatSpec(name="fp32", bits=32, safetensors="F32", torch="float32")
BF16 = FormatSpec(name="bf16", bits=16, safetensors="BF16", torch="bfloat16")
FP16 = FormatSpec(name="fp16", bits=16, safetensors="F16", torch="float16")

INT32 = FormatSpec(name="int32", bits=32, safetensors="I32", torch="int32")
"""Of indices; no weight is kept in it."""

# ggml's block formats: bits are 8 * (bytes of a block) / (values of a block), from ggml-common.h.
Q8_0 = FormatSpec(name="q8_0", bits=8 * 34 / 32, block_values=32)
Q4_0 = FormatSpec(name="q4_0", bits=8 * 18 / 32, block_values=32)
Q4_K = FormatSpec(name="q4_k", bits=8 * 144 / 256, block_values=256)
Q6_K = FormatSpec(name="q6_k", bits=8 * 210 / 256, block_values=256)

# KIVI: B bits and, per 32 values, a scale and a minimum in fp16 (arXiv 2402.02750). For keys and values only.
KIVI4 = FormatSpec(name="kivi4", bits=4 + 32 / 32, block_values=32, block_tokens=32)
KIVI2 = FormatSpec(name="kivi2", bits=2 + 32 / 32, block_values=32, block_tokens=32)

COMPUTED_BLOCKS = {spec.name: spec for spec in (Q8_0, Q4_0)}
"""Quantized formats that linears compute with as they are stored: panels are ``[ceil(N / 16)][K / 32][16 * bytes of a block]``."""

_SCRATCH_WORDS_PER_BLOCK = 10


def scratch_width(in_features: int) -> int:
    """fp32 words that a row of activations takes while a quantized linear runs: per 32 values as many bytes, a scale and a sum."""
    return in_features // Q8_0.block_values * _SCRATCH_WORDS_PER_BLOCK


FORMATS = {spec.name: spec for spec in (FP32, BF16, FP16)}
KV_FORMATS = {spec.name: spec for spec in (FP32, BF16, FP16, Q8_0, Q4_0, KIVI4, KIVI2)}
"""What keys and values can be kept in."""
_ALIASES = {"float32": FP32, "float": FP32, "bfloat16": BF16, "float16": FP16, "half": FP16}


def format_by_name(name: str) -> FormatSpec:
    """The format called ``name`` (``bf16``, ``bfloat16``, ``torch.bfloat16`` ..).

    Raises:
        ConfigError: unknown name.
    """
    plain = name.removeprefix("torch.").lower()
    spec = FORMATS.get(plain) or _ALIASES.get(plain)
    if spec is None:
        names = [*FORMATS, *_ALIASES]
        raise ConfigError(f"unknown number format {name!r}{nearest(plain, names) or '.'} Known: {', '.join(names)}")
    return spec


def format_by_safetensors(name: str) -> FormatSpec | None:
    """The format with that safetensors dtype, or None if it is not one that weights are kept in."""
    return next((spec for spec in FORMATS.values() if spec.safetensors == name), None)


_GGML_TYPES = {0: FP32, 1: FP16, 2: Q4_0, 8: Q8_0, 12: Q4_K, 14: Q6_K, 30: BF16}
# Every name by its number (ggml.h), for messages about what is not read.
# fmt: off
_GGML_NAMES = [
    "F32", "F16", "Q4_0", "Q4_1", "Q4_2", "Q4_3", "Q5_0", "Q5_1", "Q8_0", "Q8_1", "Q2_K",
    "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_K", "IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S", "IQ4_NL", "IQ3_S",
    "IQ2_S", "IQ4_XS", "I8", "I16", "I32", "I64", "F64", "IQ1_M", "BF16",
]
# fmt: on


def format_by_ggml(type_id: int) -> FormatSpec | None:
    """The format with that number in GGUF files, or None if it is not one that is read."""
    return _GGML_TYPES.get(type_id)


def ggml_type_name(type_id: int) -> str:
    """What llama.cpp calls a type; its number if it has no name here."""
    return _GGML_NAMES[type_id] if type_id < len(_GGML_NAMES) else f"number {type_id}"


def known_ggml_types() -> str:
    """The types that are read, for messages."""
    return ", ".join(_GGML_NAMES[type_id] for type_id in _GGML_TYPES)
