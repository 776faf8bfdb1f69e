# SPDX-License-Identifier: Apache-2.0
"""Dispatchers against brute force."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ziggurat.scheduling.dispatch import DISPATCHERS, LeastLoad, LoadReport, PrefixAware

REPORTS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5), st.integers(0, 5)), max_size=60)


@given(REPORTS)
def test_least_load_is_the_least(reports: list[tuple[int, int, int]]) -> None:
    dispatcher, loads = LeastLoad(5, 16), [(0, 0)] * 5
    for instance, running, waiting in reports:
        dispatcher.on_load(instance, LoadReport(running, waiting, 0, 0))
        loads[instance] = (running + waiting, waiting)
        assert dispatcher.dispatch(()) == min(range(5), key=lambda each: (loads[each], each))


@given(
    st.sampled_from(DISPATCHERS.names()),
    st.integers(1, 6),
    st.lists(st.lists(st.integers(0, 1), max_size=9), max_size=30),
)
def test_every_dispatcher_answers_with_an_instance_and_the_same_one_again(
    name: str, count: int, prompts: list[list[int]]
) -> None:
    first, second = (DISPATCHERS.get(name)(count, 2) for _ in range(2))
    for number, prompt in enumerate(prompts):
        chosen = first.dispatch(prompt)
        assert 0 <= chosen < count and chosen == second.dispatch(prompt)
        for each in (first, second):
            each.on_load(chosen, LoadReport(number % 3, number % 2, 0, 0))


def test_a_beginning_goes_where_it_went_before_unless_that_one_waits() -> None:
    dispatcher = PrefixAware(3, 4)
    prompt = [1, 2, 3, 4, 5, 6, 7, 8]
    first = dispatcher.dispatch(prompt)
    dispatcher.on_load(first, LoadReport(9, 0, 0, 0))
    assert dispatcher.dispatch([*prompt, 9]) == first
    assert dispatcher.dispatch([9, 9, 9, 9]) != first
    dispatcher.on_load(first, LoadReport(9, 5, 0, 0))
    assert dispatcher.dispatch([*prompt, 9]) != first
