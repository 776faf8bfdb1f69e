# SPDX-License-Identifier: Apache-2.0
"""Shapes of published models by name, so that nothing has to be downloaded to plan for one."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ziggurat.errors import ConfigError
from ziggurat.registry import nearest

_FILE = Path(__file__).with_name("data") / "models.toml"
BYTES_16_BIT = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """A decoder of equal layers.

    Attributes:
        gated: the feed-forward part has a gate beside its up projection.
    """

    name: str
    repository: str
    num_layers: int
    hidden: int
    num_heads: int
    num_kv_heads: int
    intermediate: int
    vocabulary: int
    gated: bool

    @property
    def head_size(self) -> int:
        """Values of one head."""
        return self.hidden // self.num_heads

    @property
    def num_layer_weights(self) -> int:
        """Matrix weights of one layer."""
        qkv = (self.num_heads + 2 * self.num_kv_heads) * self.head_size * self.hidden
        return qkv + self.hidden * self.hidden + (3 if self.gated else 2) * self.hidden * self.intermediate

    @property
    def weight_bytes(self) -> int:
        """All layers and the head in 16 bits."""
        return BYTES_16_BIT * (self.num_layers * self.num_layer_weights + self.hidden * self.vocabulary)

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of one token in all layers, in 16 bits."""
        return BYTES_16_BIT * 2 * self.num_kv_heads * self.head_size * self.num_layers


@cache
def model_shapes() -> tuple[ModelShape, ...]:
    """All of them, in the order of the file."""
    rows = tomllib.loads(_FILE.read_text(encoding="utf-8"))["model"]
    return tuple(ModelShape(**row) for row in rows)


def find_model(name: str) -> ModelShape:
    """The shape of that name or repository.

    Raises:
        ConfigError: there is none; says the nearest.
    """
    by_name = {each.lower(): shape for shape in model_shapes() for each in (shape.name, shape.repository)}
    if name.lower() not in by_name:
        raise ConfigError(
            f"unknown model shape {name!r}{nearest(name.lower(), list(by_name)) or '.'} See `ziggurat hardware list`"
        )
    return by_name[name.lower()]
