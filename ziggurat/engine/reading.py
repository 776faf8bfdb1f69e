# SPDX-License-Identifier: Apache-2.0
"""Prompt rows that are read beside sampling: log-probabilities of a prompt's tokens, and embeddings. Time grows with them, memory not.

Rows of all sequences of a step go through the head in pieces of at most ``max_rows``, in the head's own buffers; a piece's logits are
reduced to a few numbers before the next piece overwrites them. Rows do not depend on their piece, and a mean is summed row by row, so
the result has the same bits whatever the chunks and pieces.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

from ziggurat.engine.sampler import Sampler
from ziggurat.errors import EngineError
from ziggurat.scheduling.protocol import Batch, ReadRequest, SampledToken, StepResult

F32 = NDArray[np.float32]
Place = tuple[str, ReadRequest, int]
"""A row that is read: sequence, what for, and which of its request's rows."""


class HeadRows(Protocol):
    """Logits or hidden states of rows of the last forward (`PlanExecutor.rows`)."""

    def __call__(self, rows: Sequence[int], *, is_hidden: bool) -> F32: ...


def read_prompts(batch: Batch, result: StepResult, sampler: Sampler, head: HeadRows, max_rows: int) -> StepResult:
    """The step's result with what its read requests ask for. A sequence whose numbers are broken gets an error, its neighbours not."""
    wanted: dict[bool, list[tuple[int, Place]]] = {False: [], True: []}
    start = 0
    for item in batch.items:
        if item.read is not None:
            row = start + item.read.first - item.start
            places = [(row + index, (item.seq_id, item.read, index)) for index in range(item.read.num_rows)]
            wanted[item.read.kind != "logprobs"] += places
        start += len(item.token_ids)
    errors = dict(result.errors)
    scores: dict[str, list[SampledToken]] = {}
    for place, logits in _pieces(wanted[False], head, max_rows, is_hidden=False):
        _score(place, logits, sampler, scores, errors)
    pooled: dict[str, F32] = {}
    for place, hidden in _pieces(wanted[True], head, max_rows, is_hidden=True):
        _pool(place, hidden, pooled, errors)
    return replace(
        result,
        errors=errors,
        prompt_logprobs={seq_id: tuple(tokens) for seq_id, tokens in scores.items()},
        pooled=cast(Mapping[str, Sequence[float]], pooled),
    )


def _pieces(
    wanted: Sequence[tuple[int, Place]], head: HeadRows, max_rows: int, *, is_hidden: bool
) -> Iterator[tuple[Place, F32]]:
    for first in range(0, len(wanted), max_rows):
        piece = wanted[first : first + max_rows]
        values = head([row for row, _ in piece], is_hidden=is_hidden)
        for (_, place), row in zip(piece, values, strict=True):
            yield place, row


def _score(
    place: Place, row: F32, sampler: Sampler, scores: dict[str, list[SampledToken]], errors: dict[str, str]
) -> None:
    seq_id, request, index = place
    if seq_id in errors:
        return
    try:
        token = sampler.score(row, request.next_ids[index], request.num_top, seq_id)
    except EngineError as error:
        errors[seq_id] = str(error)
        return
    scores.setdefault(seq_id, []).append(token)


def _pool(place: Place, row: F32, pooled: dict[str, F32], errors: dict[str, str]) -> None:
    seq_id, request, index = place
    if seq_id in errors:
        return
    if not np.isfinite(row).all():
        errors[seq_id] = f"the model's hidden states of sequence {seq_id!r} hold NaN or infinity"
    elif index == 0:
        pooled[seq_id] = row.copy() if request.total is None else np.add(np.asarray(request.total, np.float32), row)
    else:
        pooled[seq_id] += row
