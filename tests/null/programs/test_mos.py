# SPDX-License-Identifier: Apache-2.0
"""Shapes and indices of mixtures of shards: what is drawn, what is shared, and what cannot be."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ziggurat.errors import ConfigError
from ziggurat.programs.mos import MosShape, draw_indices, num_parameters


@st.composite
def shapes(draw: st.DrawFn) -> MosShape:
    layers, equivalent = draw(st.integers(1, 6)), draw(st.integers(1, 5))
    private = draw(st.integers(0, equivalent - 1))
    rank = draw(st.integers(private, private + (equivalent - private) * layers))
    assume(rank > 0)
    return MosShape(
        num_layers=layers,
        rank=rank,
        equivalent_rank=equivalent,
        num_shards=draw(st.integers(1, 4)),
        private_rank=private,
        is_dissociated=draw(st.booleans()),
    )


@given(shape=shapes(), seed=st.integers(0, 2**40))
def test_public_shards_are_shared_and_private_ones_are_not(shape: MosShape, seed: int) -> None:
    a, b = draw_indices(shape, seed, "q_proj")
    again, _ = draw_indices(shape, seed, "q_proj")
    assert np.array_equal(a, again) and a.shape == b.shape == (shape.num_layers, shape.rank, shape.num_shards)
    assert np.array_equal(a, b) or shape.is_dissociated
    num_public = (shape.equivalent_rank - shape.private_rank) * shape.num_layers * shape.num_shards
    own = []
    for layer in a.reshape(shape.num_layers, -1):
        assert len(set(layer.tolist())) == layer.size, "no shard twice in one layer"
        assert 0 <= layer.min() <= layer.max() < shape.pool_shards
        own.append({number for number in layer.tolist() if number >= num_public})
        assert len(own[-1]) == shape.private_rank * shape.num_shards
    assert sum(map(len, own)) == len(set().union(*own)), "two layers share a private shard"


def test_without_subsets_all_layers_are_alike() -> None:
    shape = MosShape(num_layers=3, rank=6, equivalent_rank=2, has_own_subsets=False)
    a, b = draw_indices(shape, 1, "q_proj")
    assert (a == a[0]).all() and (b == a).all()
    other, _ = draw_indices(MosShape(num_layers=3, rank=4, equivalent_rank=2), 1, "q_proj")
    assert not (other == other[0]).all()


def test_the_first_indices_never_change() -> None:
    """They are kept with an adapter, but a recipe's seed should also give the same ones on every machine."""
    a, _ = draw_indices(MosShape(num_layers=2, rank=3, equivalent_rank=2, private_rank=1), 7, "q_proj")
    assert a[:, :, 0].tolist() == PINNED


PINNED = [[0, 1, 2], [1, 0, 3]]


def test_parameters_are_those_of_the_equivalent_rank() -> None:
    llama_7b = dict.fromkeys(("q", "k", "v", "o"), (4096, 4096))
    llama_7b |= {"gate": (4096, 11008), "up": (4096, 11008), "down": (11008, 4096)}
    shape = MosShape(num_layers=32, rank=32, equivalent_rank=2, num_shards=2)
    assert num_parameters(shape, llama_7b) == 2 * 32 * (4 * 8192 + 3 * 15104) == 4_997_120


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ({"private_rank": 3}, "private rank 3 is above the equivalent rank 2"),
        ({"rank": 9}, "rank 9 wants 9 public rows, and the pool has 8"),
        ({"rank": 1, "equivalent_rank": 3, "private_rank": 2}, "rank 1 is below the private rank 2"),
        ({"private_rank": 2}, "nothing is shared, and rank 4 must be 2"),
        ({"rank": 0}, "must be at least 1"),
        ({"has_own_subsets": False}, "rank 4 must be 8"),
    ],
)
def test_numbers_that_cannot_be(numbers: dict[str, int], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        draw_indices(MosShape(**{"num_layers": 4, "rank": 4, "equivalent_rank": 2, **numbers}), 0, "q_proj")  # type: ignore[arg-type]


def test_shards_must_divide() -> None:
    with pytest.raises(ConfigError, match="in_features 11008 is not divisible by 3 shards"):
        MosShape(num_layers=1, rank=1, equivalent_rank=1, num_shards=3).shard_length(11008, "in_features")
