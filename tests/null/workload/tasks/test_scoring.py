# SPDX-License-Identifier: Apache-2.0
"""Wilson bounds against published values."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ziggurat.workload.tasks.scoring import Accuracy


@pytest.mark.parametrize(
    ("num_correct", "num_items", "low", "high"),
    # Newcombe 1998, Statistics in Medicine 17, table I, method 3 (score, no continuity correction).
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_published_intervals(num_correct: int, num_items: int, low: float, high: float) -> None:
    bounds = Accuracy(num_items=num_items, num_correct=num_correct).wilson_bounds()
    assert bounds == pytest.approx((low, high), abs=5e-5)


@given(data=st.data(), num_items=st.integers(1, 5000))
def test_the_interval_holds_the_value(data: st.DataObject, num_items: int) -> None:
    accuracy = Accuracy(num_items=num_items, num_correct=data.draw(st.integers(0, num_items)))
    low, high = accuracy.wilson_bounds()
    assert 0.0 <= low <= accuracy.value + 1e-12
    assert accuracy.value - 1e-12 <= high <= 1.0


def test_nothing_measured_says_nothing() -> None:
    assert Accuracy(num_items=0, num_correct=0).wilson_bounds() == (0.0, 1.0)
