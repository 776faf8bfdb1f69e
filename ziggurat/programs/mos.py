# SPDX-License-Identifier: Apache-2.0
"""MoS, mixture of shards: low-rank updates whose matrices are made of shards of a pool that all layers share. Torch-free.

Per kind of module (``q_proj`` ..) there is a pool of shards for A and one for B. A layer's A has r rows, each of l shards of the pool::

    pool_a   [e L l, in / l]      e the equivalent rank (what the same bytes would buy as plain LoRA), L layers
    index_a  [r, l] per layer     the shards of public rows, drawn without replacement, then p rows of the layer's own
    A        [r, in]              row t is shards index[t, 0] .. index[t, l - 1], side by side

The indices are drawn once and kept with the adapter, so that nothing depends on a generator later. As a folder it looks like PEFT's LoRA:
``adapter_config.json`` with ``"peft_type": "MOS"``, and ``adapter_model.safetensors`` with ``q_proj.pool_a``, ``q_proj.pool_b`` and per
matrix ``..mos_A.index`` and ``..mos_B.index`` (int32 [r, l]).

Source: Wang et al., "MoS: Unleashing Parameter Efficiency of Low-Rank Adaptation with Mixture of Shards", arXiv 2410.00938.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from ziggurat.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class MosShape:
    """The numbers of a mixture of shards.

    Attributes:
        num_layers: L.
        rank: r, rows of A per layer.
        equivalent_rank: e: the pools have the parameters of a LoRA of this rank.
        num_shards: l, per row.
        private_rank: p, rows of each layer that no other layer uses.
        has_own_subsets: every layer draws a subset of its own; without, all layers use the whole pool, and r must be e L.
        is_dissociated: B's indices are drawn apart from A's.
    """

    num_layers: int
    rank: int
    equivalent_rank: int
    num_shards: int = 1
    private_rank: int = 0
    has_own_subsets: bool = True
    is_dissociated: bool = True

    @property
    def pool_shards(self) -> int:
        """Shards of each pool."""
        return self.equivalent_rank * self.num_layers * self.num_shards

    def check(self) -> None:
        """
        Raises:
            ConfigError: these numbers cannot be; says which, and what could.
        """
        r, e, p, count = self.rank, self.equivalent_rank, self.private_rank, self.num_layers
        if min(r, e, self.num_shards, count) < 1 or p < 0:
            raise ConfigError(
                f"rank {r}, equivalent rank {e} and shards {self.num_shards} must be at least 1, private rank {p} 0"
            )
        if p > e:
            raise ConfigError(
                f"private rank {p} is above the equivalent rank {e}: a layer's own rows come out of its share"
            )
        if r < p:
            raise ConfigError(f"rank {r} is below the private rank {p}")
        if p == e and r != e:
            raise ConfigError(
                f"with private rank {p} = equivalent rank {e} nothing is shared, and rank {r} must be {e} too"
            )
        if not self.has_own_subsets:
            if p or r != e * count:
                raise ConfigError(
                    f"without subsets every layer uses the whole pool: rank {r} must be {e * count} and private rank {p} 0"
                )
        elif (r - p) > (e - p) * count:
            raise ConfigError(
                f"rank {r} wants {r - p} public rows, and the pool has {(e - p) * count}: lower the rank or raise the equivalent rank"
            )

    def shard_length(self, features: int, what: str) -> int:
        """Values per shard.

        Raises:
            ConfigError: the features cannot be divided so.
        """
        if features % self.num_shards:
            raise ConfigError(f"{what} {features} is not divisible by {self.num_shards} shards")
        return features // self.num_shards


def draw_indices(shape: MosShape, seed: int, kind: str) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Which shards every layer's A and B are made of: two int32 [L, r, l].

    Random order comes from Philox 4x64-10 (Salmon et al. 2011) keyed with the seed and the kind of module: the same everywhere.
    """
    shape.check()
    a = _draw(shape, seed, f"{kind}.a")
    return a, _draw(shape, seed, f"{kind}.b") if shape.is_dissociated else a.copy()


def _draw(shape: MosShape, seed: int, name: str) -> NDArray[np.int32]:
    per_row, count = shape.num_shards, shape.num_layers
    num_public = (shape.equivalent_rank - shape.private_rank) * count * per_row
    wanted = (shape.rank - shape.private_rank) * per_row
    own = shape.private_rank * per_row
    bits = np.random.Philox(key=[seed, crc32(name.encode())])
    rows = []
    for layer in range(count):
        order = np.argsort(bits.random_raw(num_public), kind="stable") if num_public else np.zeros(0, dtype=np.int64)
        public = order[:wanted] if shape.has_own_subsets else np.arange(num_public)
        first = num_public + layer * own
        rows.append(np.concatenate([public, np.arange(first, first + own)]))
    return np.stack(rows).astype(np.int32).reshape(count, shape.rank, per_row)


def num_parameters(shape: MosShape, features: Mapping[str, tuple[int, int]]) -> int:
    """Trained numbers of an adapter of these kinds of modules, each with (in, out) features: as many as a LoRA of the equivalent rank
    has."""
    return shape.equivalent_rank * shape.num_layers * sum(inner + outer for inner, outer in features.values())
