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
    """A dense storage format.

    Attributes:
        name: the short name people type (``bf16``).
        bits: bits per value.
        safetensors: the dtype's name in safetensors headers, or None where it has none.
        torch: the dtype's name in torch, without the ``torch.`` prefix.
    """

    name: str
    bits: int
    safetensors: str
    torch: str

    def num_bytes(self, shape: Sequence[int]) -> int:
        """Bytes of a dense array of that shape."""
        return math.ceil(math.prod(shape) * self.bits / 8)


FP32 = FormatSpec(name="fp32", bits=32, safetensors="F32", torch="float32")
BF16 = FormatSpec(name="bf16", bits=16, safetensors="BF16", torch="bfloat16")
FP16 = FormatSpec(name="fp16", bits=16, safetensors="F16", torch="float16")

FORMATS = {spec.name: spec for spec in (FP32, BF16, FP16)}
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
