# SPDX-License-Identifier: Apache-2.0
"""Plans with streamed layers: nothing overlaps that is there at the same time, nothing is lost, the budget holds."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.null.memory.test_fit import config
from ziggurat.errors import DoesNotFit
from ziggurat.memory.fit import SizeRequest, fit
from ziggurat.programs.architectures import build_program
from ziggurat.programs.formats import BF16
from ziggurat.programs.lower import Formats, lower
from ziggurat.programs.packing import PAGE_BYTES
from ziggurat.programs.plan import Limits, Plan
from ziggurat.programs.streaming import layer_weights, streamed

LIMITS = Limits(max_model_len=64, max_num_seqs=2, max_num_batched_tokens=16)


def plan_of(num_layers: int, **changes: Any) -> Plan:
    raw = config(num_hidden_layers=num_layers, **changes)
    return lower(build_program(raw), Formats(weight=BF16, kv=BF16), LIMITS)


def weights_of(step: Any) -> list[str]:
    names = ("weight", "bias", "q_norm", "k_norm")
    return [name for field in names if (name := getattr(step, field, None)) is not None]


def test_layers_follow_each_other_and_hold_the_weights_of_their_steps() -> None:
    plan = plan_of(5)
    assert len(plan.layer_spans) == 5
    for before, after in pairwise(plan.layer_spans):
        assert before.end_step == after.first_step and before.offset + before.num_bytes == after.offset
    for number, span in enumerate(plan.layer_spans):
        assert span.offset % PAGE_BYTES == span.num_bytes % PAGE_BYTES == 0
        mine = set(layer_weights(plan, number))
        used = {name for step in plan.steps[span.first_step : span.end_step] for name in weights_of(step)}
        assert used == mine and mine


@given(num_layers=st.integers(1, 12), num_resident=st.integers(0, 12), num_places=st.integers(1, 3), tied=st.booleans())
def test_places_hold_one_layer_at_a_time_and_the_rest_stays(
    num_layers: int, num_resident: int, num_places: int, tied: bool
) -> None:
    whole = plan_of(num_layers, tie_word_embeddings=tied)
    plan = streamed(whole, min(num_resident, num_layers), num_places)
    assert list(plan.weights) == list(whole.weights) and plan.steps == whole.steps
    if num_layers - min(num_resident, num_layers) <= num_places:
        assert plan is whole
        return
    assert len(plan.streamed_layers) == num_layers - num_resident
    assert plan.weight_bytes < whole.weight_bytes or num_layers - num_resident <= num_places
    names = {number: layer_weights(whole, number) for number in range(num_layers)}
    in_places = {name for number in plan.streamed_layers for name in names[number]}
    # Inside a layer, all is where it was.
    for number, span in enumerate(plan.layer_spans):
        for name in names[number]:
            before = whole.weights[name].offset - whole.layer_spans[number].offset
            assert plan.weights[name].offset - span.offset == before
            assert plan.weights[name].num_bytes == whole.weights[name].num_bytes
    stays = sorted((w.offset, w.offset + w.num_bytes) for n, w in plan.weights.items() if n not in in_places)
    places = {
        (plan.layer_spans[n].offset, plan.layer_spans[n].offset + plan.layer_spans[n].num_bytes)
        for n in plan.streamed_layers
    }
    starts = sorted({start for start, _ in places})
    assert len(starts) == num_places
    taken = stays + [(start, max(end for begin, end in places if begin == start)) for start in starts]
    for (_, end), (start, _) in pairwise(sorted(taken)):
        assert end <= start
    assert max(end for _, end in taken) <= plan.weight_bytes
    # Neighbours in the order of streaming never share a place.
    if num_places > 1:
        for before, after in pairwise(plan.streamed_layers):
            assert plan.layer_spans[before].offset != plan.layer_spans[after].offset


@given(num_layers=st.integers(3, 16), share=st.floats(0.05, 1.2))
def test_a_budget_below_the_weights_is_met_by_streaming(num_layers: int, share: float) -> None:
    program = build_program(config(num_hidden_layers=num_layers))
    formats = Formats(weight=BF16, kv=BF16)
    whole = lower(program, formats, LIMITS)
    request = SizeRequest(memory_bytes=int(whole.fixed_bytes() * share) + (1 << 20), max_model_len=64)
    try:
        plain = fit(program, formats, request)
    except DoesNotFit as error:
        plain = None
        advice = str(error)
    streaming = SizeRequest(memory_bytes=request.memory_bytes, max_model_len=64, can_stream=True)
    try:
        found = fit(program, formats, streaming)
    except DoesNotFit:
        assert plain is None
        return
    if plain is not None:
        assert found.plan == plain.plan and not found.plan.streamed_layers
        return
    assert "--offload-folder" in advice
    assert found.plan.streamed_layers and found.planned_bytes() <= streaming.usable_bytes
    assert found.plan.limits.max_model_len == 64


def test_more_memory_keeps_more_layers() -> None:
    program = build_program(config(num_hidden_layers=24))
    formats = Formats(weight=BF16, kv=BF16)
    size = lower(program, formats, LIMITS).fixed_bytes()
    counts = []
    for tenths in range(4, 12):
        request = SizeRequest(memory_bytes=size * tenths // 10 + (1 << 20), max_model_len=64, can_stream=True)
        try:
            counts.append(len(fit(program, formats, request).plan.streamed_layers))
        except DoesNotFit:
            counts.append(99)
    assert counts == sorted(counts, reverse=True) and counts[-1] == 0 and counts[0] > counts[-2]


@pytest.mark.parametrize("num_resident", [0, 1, 5, 11, 22])
def test_layers_that_stay_are_spread_evenly(num_resident: int) -> None:
    plan = streamed(plan_of(24), num_resident, 1)
    stays = [number for number in range(24) if number not in plan.streamed_layers]
    assert len(stays) == num_resident
    gaps = [after - before for before, after in pairwise(stays)]
    assert not gaps or max(gaps) - min(gaps) <= 1
