# SPDX-License-Identifier: Apache-2.0
"""From a row of logits to tokens: one row at a time, in scratch space taken once.

Order of operations, vLLM's: log-probabilities of the untouched logits (for reports) | logit bias, minimum length |
repetition, frequency and presence penalties | logits mask | greedy, or temperature | min-p | top-k | top-p | draw.

The draw is counter-based: Philox keyed by (seed, position of the token). So a token depends on its own row, its own seed and its own
position, never on the batch, the step or a preemption. Ties go to the lowest token id.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ziggurat.engine.structured import MaskStates
from ziggurat.errors import EngineError
from ziggurat.scheduling.protocol import SampledToken, SampleRequest
from ziggurat.scheduling.sampling import SamplingParams

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

_MASK_64 = (1 << 64) - 1
_PHILOX_M0, _PHILOX_M1 = 0xD2E7470EE14C6C93, 0xCA5A826395121157
_PHILOX_W0, _PHILOX_W1 = 0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that depends on nothing but its arguments: 53 bits of Philox 4x64-10 under the key (seed, position).

    Bit-equal to ``np.random.Philox(key=[seed, position]).random_raw()``, without the 30 microseconds of making that object.
    Source: Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3 (SC 2011).
    """
    k0, k1 = seed & _MASK_64, position & _MASK_64
    c0, c1, c2, c3 = 1, 0, 0, 0
    for _ in range(10):
        product0, product1 = _PHILOX_M0 * c0, _PHILOX_M1 * c2
        c0, c1 = (product1 >> 64) ^ c1 ^ k0, product1 & _MASK_64
        c2, c3 = (product0 >> 64) ^ c3 ^ k1, product0 & _MASK_64
        k0, k1 = (k0 + _PHILOX_W0) & _MASK_64, (k1 + _PHILOX_W1) & _MASK_64
    return (c0 >> 11) * 2.0**-53


class Sampler:
    """Samples rows of ``vocab_size`` logits. Not thread-safe: rows share one scratch space of 16 bytes per vocabulary entry.

    Args:
        max_mask_states: states of logits masks to keep: as many as sequences run at once.
    """

    def __init__(self, vocab_size: int, max_mask_states: int = 1) -> None:
        self.vocab_size = vocab_size
        self._masks = MaskStates(vocab_size, max_mask_states)
        self._scores: F64 = np.empty(vocab_size, dtype=np.float64)
        self._weights: F64 = np.empty(vocab_size, dtype=np.float64)

    def sample(self, row: F32, request: SampleRequest) -> list[SampledToken]:
        """One token per entry of ``request.seq_ids``.

        Args:
            row: fp32 [vocab_size], not changed.

        Raises:
            EngineError: the row has NaN, or nothing is left to choose from.
        """
        params = request.params
        best_id = _best(row, request.seq_ids[0])
        num_top = 0 if params.logprobs is None and params.is_ranked else params.logprobs
        if params.temperature == 0 and num_top is None and not _is_adjusted(request):
            return [SampledToken(token_id=best_id)] * len(request.seeds)
        np.copyto(self._scores, row)
        report = None if num_top is None else _Logprobs(row, self._scores, self._weights, num_top)
        position = len(request.prompt_ids) + len(request.output_ids)
        self._adjust(request)
        # Only tokens that the mask allows are looked at: mostly few, and exp() is slow for -inf.
        allowed = self._masks.allowed(request)
        scores = self._scores if allowed is None else self._scores[allowed]
        if params.temperature == 0:
            places = [int(scores.argmax())] * len(request.seeds)
            if scores[places[0]] == -np.inf:
                raise EngineError(f"no token is left to choose from for sequence {request.seq_ids[0]!r}")
        else:
            points = [uniform(seed, position) for seed in request.seeds]
            places = self._draw(scores, params, points, request.seq_ids[0])
        tokens = places if allowed is None else [int(allowed[place]) for place in places]
        return [SampledToken(token_id=token) if report is None else report.of(token) for token in tokens]

    def score(self, row: F32, token_id: int, num_top: int, seq_id: str) -> SampledToken:
        """How likely ``token_id`` is by a row of logits, with its rank (1: none is more likely) and ``num_top`` alternatives.

        Raises:
            EngineError: the row has NaN.
        """
        _best(row, seq_id)
        np.copyto(self._scores, row)
        token = _Logprobs(row, self._scores, self._weights, num_top).of(token_id)
        return replace(token, rank=1 + int(np.count_nonzero(row > row[token_id])))

    def _adjust(self, request: SampleRequest) -> None:
        """Bias, minimum length and penalties, in place."""
        params, scores = request.params, self._scores
        if params.logit_bias:
            count = len(params.logit_bias)
            scores[np.fromiter(params.logit_bias, np.int64, count)] += np.fromiter(
                params.logit_bias.values(), np.float64, count
            )
        if len(request.output_ids) < params.min_tokens:
            scores[[*request.eos_ids, *params.stop_token_ids]] = -np.inf
        if params.repetition_penalty != 1:
            seen = np.unique(np.asarray([*request.prompt_ids, *request.output_ids], dtype=np.int64))
            values = scores[seen]
            scores[seen] = np.where(values > 0, values / params.repetition_penalty, values * params.repetition_penalty)
        if request.output_ids and (params.frequency_penalty or params.presence_penalty):
            ids, counts = np.unique(np.asarray(request.output_ids, dtype=np.int64), return_counts=True)
            scores[ids] -= params.frequency_penalty * counts + params.presence_penalty

    def _draw(self, scores: F64, params: SamplingParams, points: Sequence[float], seq_id: str) -> list[int]:
        """Places in ``scores``, which are used up."""
        weights = self._weights[: len(scores)]
        best = float(scores.max())
        if best == -np.inf:
            raise EngineError(f"no token is left to choose from for sequence {seq_id!r}")
        # Weights are relative to the best token's 1, so they never overflow, however small the temperature.
        np.subtract(scores, best, out=weights)
        with np.errstate(over="ignore"):  # -inf is right where a difference over a tiny temperature overflows
            np.divide(weights, params.temperature, out=weights)
        np.exp(weights, out=weights)
        kept = _kept(weights, params)
        chosen = weights if kept is None else weights[kept]
        # cumsum may go into the scores: they are not needed any more.
        sums = np.cumsum(chosen, out=scores[: len(chosen)])
        places = np.searchsorted(sums, [point * sums[-1] for point in points], side="right")
        # Rounding may push point * total up to the total itself; then the last token with any weight is meant.
        last = int(np.flatnonzero(chosen)[-1])
        ordered = [min(int(place), last) for place in places]
        return ordered if kept is None else [int(kept[place]) for place in ordered]


def _best(row: F32, seq_id: str) -> int:
    """The best token of a row of numbers; the lowest among equals."""
    best_id = int(row.argmax())  # the first NaN, if there is one
    if np.isnan(row[best_id]) or row[best_id] == np.inf:
        raise EngineError(f"the model's logits of sequence {seq_id!r} hold NaN or infinity")
    return best_id


def _is_adjusted(request: SampleRequest) -> bool:
    params = request.params
    return bool(
        params.logit_bias
        or params.logits_mask is not None
        or len(request.output_ids) < params.min_tokens
        or params.repetition_penalty != 1
        or params.frequency_penalty
        or params.presence_penalty
    )


def _kept(weights: F64, params: SamplingParams) -> I64 | None:
    """Ids that pass min-p, top-k and top-p, best first and lowest id first among equals; None when all pass."""
    k = params.top_k if 0 < params.top_k < len(weights) else None
    if params.min_p == 0 and k is None and params.top_p == 1:
        return None
    threshold = params.min_p
    if k is not None:
        # Everything below the k-th best weight is out; ties at the border are settled after sorting.
        threshold = max(threshold, float(np.partition(weights, len(weights) - k)[len(weights) - k]))
    elif params.top_p < 1:
        # All tokens below this bound together weigh less than 1 - top_p, so none of them is in the nucleus.
        passing = float(weights.sum()) if threshold == 0 else float(weights[weights >= threshold].sum())
        threshold = max(threshold, (1 - params.top_p) * passing / (2 * len(weights)))
    ids = np.flatnonzero(weights >= threshold)
    ids = ids[np.argsort(-weights[ids], kind="stable")][:k]
    if params.top_p < 1:
        total = passing if k is None else float(weights[ids].sum())
        before = np.concatenate(([0.0], np.cumsum(weights[ids])[:-1]))
        ids = ids[before < params.top_p * total]
    return ids


class _Logprobs:
    """Log-probabilities of the untouched ``row``; ``scores`` is the row in fp64, ``scratch`` is used only while this is made."""

    def __init__(self, row: F32, scores: F64, scratch: F64, num_top: int) -> None:
        best = float(scores.max())
        np.subtract(scores, best, out=scratch)
        np.exp(scratch, out=scratch)
        self._offset = best + float(np.log(scratch.sum()))
        self._row = row
        self._top: tuple[tuple[int, float], ...] = ()
        if num_top:
            num_top = min(num_top, len(scores))
            border = np.partition(scores, len(scores) - num_top)[len(scores) - num_top]
            ids = np.flatnonzero(scores >= border)
            ids = ids[np.argsort(-scores[ids], kind="stable")][:num_top]
            self._top = tuple((int(token_id), self._logprob(int(token_id))) for token_id in ids)

    def _logprob(self, token_id: int) -> float:
        return float(self._row[token_id]) - self._offset

    def of(self, token_id: int) -> SampledToken:
        return SampledToken(token_id=token_id, logprob=self._logprob(token_id), top_logprobs=self._top)
