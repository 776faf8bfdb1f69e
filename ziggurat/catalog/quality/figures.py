# SPDX-License-Identifier: Apache-2.0
"""From scores of tokens and right answers to figures with bounds. Plain data and NumPy; nothing is run here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ziggurat.workload.tasks.scoring import Accuracy

_Z_95 = 1.959963984540054


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenScores:
    """Teacher-forced scores of a text.

    Attributes:
        logprobs: [N], of the tokens that stand in the text.
        top_ids, top_logprobs: [N, K], the most likely tokens, best first.
    """

    logprobs: NDArray[np.float64]
    top_ids: NDArray[np.int64]
    top_logprobs: NDArray[np.float64]

    @property
    def perplexity(self) -> float:
        """exp of the mean negative log-probability."""
        return math.exp(-float(self.logprobs.mean()))


def agreement(reference: TokenScores, other: TokenScores) -> dict[str, Any]:
    """How far another format's next-token distributions are from the reference's, over the same tokens.

    ``mean_kl`` is over the reference's K most likely tokens and one bin for the rest; a token that the other does not list lies in its
    rest. Lumping can only lose divergence, so it is a lower bound (data-processing inequality).
    """
    same = int((reference.top_ids[:, 0] == other.top_ids[:, 0]).sum())
    top1 = Accuracy(num_items=len(reference.logprobs), num_correct=same)
    low, high = top1.wilson_bounds()
    return {
        "top1_agreement": top1.value,
        "top1_low": low,
        "top1_high": high,
        "mean_kl_lower_bound": float(_kl(reference, other).mean()),
        "mean_logprob_difference": float((other.logprobs - reference.logprobs).mean()),
    }


def _kl(reference: TokenScores, other: TokenScores) -> NDArray[np.float64]:
    # [N, K, K]: where the reference's k-th token stands in the other's list.
    is_there = reference.top_ids[:, :, None] == other.top_ids[:, None, :]
    found = is_there.any(axis=2)
    log_p = reference.top_logprobs
    log_q = np.where(is_there, other.top_logprobs[:, None, :], 0.0).sum(axis=2)
    p = np.where(found, np.exp(log_p), 0.0)
    q = np.where(found, np.exp(log_q), 0.0)
    listed = np.where(found, p * (log_p - log_q), 0.0).sum(axis=1)
    tiny = np.finfo(np.float64).tiny
    rest_p, rest_q = np.maximum(1 - p.sum(axis=1), 0.0), np.maximum(1 - q.sum(axis=1), tiny)
    rest = np.where(rest_p > 0, rest_p * np.log(np.maximum(rest_p, tiny) / rest_q), 0.0)
    return np.asarray(listed + rest, dtype=np.float64)


def task_figures(right: Sequence[bool]) -> dict[str, Any]:
    """Accuracy with its Wilson bounds."""
    accuracy = Accuracy(num_items=len(right), num_correct=sum(right))
    low, high = accuracy.wilson_bounds()
    return {"n": len(right), "accuracy": accuracy.value, "wilson_low": low, "wilson_high": high}


def paired_difference(reference: Sequence[bool], other: Sequence[bool]) -> dict[str, float]:
    """Other minus reference over the same items, with the 95 % interval of Agresti and Min (Biometrics 2005): the Wald interval of a
    paired difference after half an item was added to each cell."""
    assert len(reference) == len(other), "one answer per item from both"
    gained = sum(b and not a for a, b in zip(reference, other, strict=True)) + 0.5
    lost = sum(a and not b for a, b in zip(reference, other, strict=True)) + 0.5
    total = len(reference) + 2
    middle = (gained - lost) / total
    half = _Z_95 * math.sqrt(gained + lost - (gained - lost) ** 2 / total) / total
    return {
        "difference": (sum(other) - sum(reference)) / max(len(reference), 1),
        "difference_low": middle - half,
        "difference_high": middle + half,
    }
