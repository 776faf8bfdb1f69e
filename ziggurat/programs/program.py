# SPDX-License-Identifier: Apache-2.0
"""A model as data: what it computes, with which weights, and which KV groups it keeps.

An architecture is a function from a configuration to a `Program`. Executors, the memory planner, the cost model and the trainer
read Programs (or the `Plan` lowered from one); none of them knows an architecture by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from ziggurat.programs.ops import TOKENS, Op
from ziggurat.programs.rope import RopeSpec

Mode = Literal["serve", "train"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueSpec:
    """Shape of a value: ``leading`` is symbolic (`TOKENS` or `ROWS`), ``width`` is the row length. Activations are fp32."""

    width: int
    leading: str = TOKENS


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightSpec:
    """A weight by its Hugging Face name.

    Attributes:
        shape: as in the checkpoint ([out, in] for matrices).
        role: ``matrix`` (kept in the storage format, packed), ``vector`` (norms and biases, kept in fp32) or ``embedding``.
        tied_to: the weight whose bytes this one shares, or None.
    """

    shape: tuple[int, ...]
    role: Literal["matrix", "vector", "embedding"]
    tied_to: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class KVGroup:
    """Layers that keep the same span of tokens, so that one block table serves them all.

    Attributes:
        layers: layer numbers, ascending.
        window: tokens that stay visible, or None for all of them.
        is_tail: holds in fp32 what another group of the same layers will pack (`ziggurat.programs.tails`).
    """

    index: int
    layers: tuple[int, ...]
    num_kv_heads: int
    head_dim: int
    window: int | None = None
    is_tail: bool = False

    def values_per_token(self) -> int:
        """Numbers kept for one token over all layers of the group, keys and values together."""
        return 2 * len(self.layers) * self.num_kv_heads * self.head_dim


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """One architecture with one configuration.

    Attributes:
        architecture: Hugging Face's class name.
        prologue, layers, epilogue: operations in execution order; ``layers[i]`` are those of layer i.
        values: every value an operation reads or writes.
        weights: every weight by name, in the order of first use.
        max_position: positions the model was built for, prompt and output together.
        hidden_size: width of the residual stream.
        ropes: the rotary embeddings that `Rope` operations name by index.
        top_k: experts per token, 0 without experts: a batch of n tokens has ``n * top_k`` routed rows, however ragged the experts.
    """

    architecture: str
    mode: Mode
    vocab_size: int
    hidden_size: int
    max_position: int
    ropes: tuple[RopeSpec, ...]
    prologue: tuple[Op, ...]
    layers: tuple[tuple[Op, ...], ...]
    epilogue: tuple[Op, ...]
    values: dict[str, ValueSpec]
    weights: dict[str, WeightSpec]
    groups: tuple[KVGroup, ...]
    ignored_weights: tuple[str, ...] = field(default=())
    top_k: int = 0

    @property
    def rope(self) -> RopeSpec:
        """The first rotary embedding; most models have one."""
        return self.ropes[0]

    def ops(self) -> Iterator[Op]:
        """All operations in execution order."""
        yield from self.prologue
        for layer in self.layers:
            yield from layer
        yield from self.epilogue

    def kv_groups(self) -> tuple[KVGroup, ...]:
        """The KV groups that a store must provide."""
        return self.groups

    def table_bytes(self, max_position: int) -> int:
        """Bytes of the rotary tables of all embeddings."""
        return sum(rope.table_bytes(max_position) for rope in self.ropes)

    def num_parameters(self) -> int:
        """Stored parameters; tied weights count once."""
        total = 0
        for spec in self.weights.values():
            if spec.tied_to is None:
                count = 1
                for size in spec.shape:
                    count *= size
                total += count
        return total
