# SPDX-License-Identifier: Apache-2.0
"""A Plan whose weights do not fit: some layers stay, the others pass through a few places that they share. Pure.

::

    arena  [ embedding | layer 0 | layer 3 | layer 6 | .. | final norm, head | place 0 | place 1 ]
    step     layer 0, layer 1 (place 0), layer 2 (place 1), layer 3, layer 4 (place 0) ..

Each streamed layer has one place for good, so addresses never change. Those that stay are spread evenly: while they compute, the next
ones are read. Source of the idea: FlexGen (arXiv 2303.06865), LLM in a flash (arXiv 2312.11514).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from ziggurat.programs.plan import LayerSpan, PackedWeight, Plan

NUM_PLACES = 2
"""Places that streamed layers share: one computes, one is being read."""


def layer_spans(starts: Sequence[tuple[int, int]]) -> tuple[LayerSpan, ...]:
    """Steps and bytes of every layer. ``starts``: (first step, offset of the weights) of each, and where the last one ends."""
    return tuple(
        LayerSpan(first_step=step, end_step=end_step, offset=offset, num_bytes=end - offset)
        for (step, offset), (end_step, end) in pairwise(starts)
    )


def place_bytes(plan: Plan) -> int:
    """One place: the largest layer."""
    return max(span.num_bytes for span in plan.layer_spans)


def streamed(plan: Plan, num_resident: int, num_places: int = NUM_PLACES) -> Plan:
    """The same Plan with that many layers resident; the others share ``num_places`` places behind everything else.

    With no more layers to stream than places the Plan comes back as it is: they would all be resident.
    """
    num_layers = len(plan.layer_spans)
    assert num_resident >= 0 and num_places >= 1 and not plan.streamed_layers
    if num_layers - num_resident <= num_places:
        return plan
    stays = [
        (number + 1) * num_resident // num_layers > number * num_resident // num_layers for number in range(num_layers)
    ]
    spans, moves, shift = [], [], 0
    for span, is_resident in zip(plan.layer_spans, stays, strict=True):
        if not is_resident:
            shift += span.num_bytes
        moves.append(-shift)
        spans.append(replace(span, offset=span.offset - shift, is_streamed=not is_resident))
    places_offset, size = plan.weight_bytes - shift, place_bytes(plan)
    number = 0
    for index, span in enumerate(spans):
        if span.is_streamed:
            place = places_offset + number % num_places * size
            moves[index] = place - plan.layer_spans[index].offset
            spans[index] = replace(span, offset=place)
            number += 1
    return replace(
        plan,
        weights={name: _moved(weight, plan.layer_spans, moves, -shift) for name, weight in plan.weights.items()},
        weight_bytes=places_offset + num_places * size,
        layer_spans=tuple(spans),
    )


def _moved(weight: PackedWeight, spans: tuple[LayerSpan, ...], moves: list[int], behind: int) -> PackedWeight:
    """A weight where its layer went; what lies before the first layer stays, what lies behind the last follows."""
    for span, move in zip(spans, moves, strict=True):
        if span.offset <= weight.offset < span.offset + span.num_bytes:
            return replace(weight, offset=weight.offset + move)
    is_before = weight.offset < spans[0].offset
    return weight if is_before else replace(weight, offset=weight.offset + behind)


def layer_weights(whole: Plan, number: int) -> list[str]:
    """Names of a layer's weights, in order; ``whole`` is the Plan before anything was streamed."""
    span = whole.layer_spans[number]
    return [
        name for name, weight in whole.weights.items() if span.offset <= weight.offset < span.offset + span.num_bytes
    ]
