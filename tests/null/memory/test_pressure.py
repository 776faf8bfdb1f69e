# SPDX-License-Identifier: Apache-2.0
"""Which budget under pressure: limits at once, stalls step by step, back when it is calm; and the kernel's files on a made-up tree."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ziggurat.memory.pressure import CALM_S, STALLS_HIGH, BudgetGovernor, read_stalls

GIB = 1 << 30


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ((None, None), None),
        (("some avg10=12.34 avg60=1.00 avg300=0.00 total=5\nfull avg10=9.00 avg60=0 avg300=0 total=1\n", None), 12.34),
        (("full avg10=9.00\n", "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"), 0.0),
        (("nonsense", None), None),
    ],
)
def test_stalls_are_read_from_the_first_file_that_has_them(
    tmp_path: Path, texts: tuple[str | None, ...], expected: float | None
) -> None:
    paths = tuple(tmp_path / f"{number}" for number in range(len(texts)))
    for path, text in zip(paths, texts, strict=True):
        if text is not None:
            path.write_text(text)
    assert read_stalls(paths) == expected


def test_a_lowered_limit_is_followed_at_once_and_calm_brings_the_budget_back() -> None:
    governor = BudgetGovernor(most=GIB, budget=GIB)
    assert governor.decide(0.0, GIB, None) is None
    wanted = governor.decide(1.0, GIB // 2, None)
    assert wanted == GIB // 2
    governor.budget = wanted
    assert governor.decide(2.0, GIB // 2, None) is None
    sizes, now = [governor.budget], 2.0
    while governor.budget < GIB:
        now += 1.0
        more = governor.decide(now, GIB, 0.0)
        if more is not None:
            governor.budget = more
            sizes.append(more)
    assert sizes == sorted(sizes) and len(sizes) == 9, "a tenth at a time"
    assert now == pytest.approx(2.0 + 8 * CALM_S)


def test_stalls_take_a_tenth_at_a_time_down_to_what_fits() -> None:
    governor = BudgetGovernor(most=1000, budget=1000)
    for expected in (900, 810, 729):
        assert governor.decide(0.0, 1000, STALLS_HIGH) == expected
        governor.budget = expected
    governor.refused(700)
    assert governor.decide(0.0, 1000, 50.0) == 700
    governor.budget = 700
    assert governor.decide(0.0, 1000, 50.0) is None
    assert governor.decide(100.0, 1000, 5.0) is None, "neither bad nor calm"
    assert governor.decide(101.0, 1000, 0.0) is None
    assert governor.decide(101.0 + CALM_S, 1000, 0.0) == 771


@given(
    looks=st.lists(st.tuples(st.floats(0.1, 40), st.integers(0, 2000), st.none() | st.floats(0, 100)), max_size=60),
    least=st.integers(0, 500),
)
def test_the_budget_never_leaves_its_bounds(looks: list[tuple[float, int, float | None]], least: int) -> None:
    governor, now = BudgetGovernor(most=1000, budget=1000, least=least), 0.0
    for passed, room, stalls in looks:
        now += passed
        wanted = governor.decide(now, room, stalls)
        if wanted is not None:
            assert least <= wanted <= 1000 and wanted != governor.budget
            assert wanted < governor.budget or (room >= wanted and (stalls or 0.0) < STALLS_HIGH)
            governor.budget = wanted
