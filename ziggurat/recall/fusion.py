# SPDX-License-Identifier: Apache-2.0
"""One ranking out of many signals, and whether the best of it is an answer at all.

The weights were fitted on four public conversations (LoCoMo's conv-26, -30, -41 and -42) by coordinate search, and rounded. Fitted on three
and judged on the fourth, recall@10 is 0.81 and MRR 0.58 on average; on all four 0.82 and 0.59. Abstention is a logistic regression on the
same conversations: AUROC 0.76 when judged on a conversation that was left out. Both know nothing of any question's text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from ziggurat.recall.signals import F64, Signals

WEIGHTS: Mapping[str, float] = {
    "words": 0.2,
    "words, 3 turns": 0.5,
    "words, 7 turns": 0.5,
    "words, with the turn before": 0.5,
    "words, session": 0.5,
    "meaning, dated": 0.2,
    "meaning": 0.7,
    "meaning, 3 turns": 0.55,
    "meaning, session": 0.25,
    "speaker": 1.1,
}
# Logistic weights of `evidence_of`, in its order, and the constant.
_ABSTENTION = (-2.552, -0.128, 1.299, 3.104, 0.201, -0.526, 0.112, -0.144, -0.039, 0.252, 0.036, -0.025)
_ABSTENTION_CONSTANT = 1.179
_TOPS = (1, 3, 5)


def fused(signals: Signals, rows: F64, *, without: tuple[str, ...] = ()) -> F64:
    """[passages]: the weighted sum of z-scored signals."""
    weights = np.asarray([0.0 if name in without else WEIGHTS[name] for name in signals.names])
    return np.asarray(weights @ rows)


def explain(signals: Signals, rows: F64, place: int) -> dict[str, float]:
    """What each signal adds to the score of a passage, largest first."""
    parts = {name: WEIGHTS[name] * float(rows[row, place]) for row, name in enumerate(signals.names)}
    return dict(sorted(parts.items(), key=lambda part: -part[1]))


def answer_probability(signals: Signals, rows: F64, question: str) -> float:
    """How likely the passages hold an answer, 0 to 1. Without an encoder its signals count as 0, and the figure is less sharp."""
    score = _ABSTENTION_CONSTANT + float(np.dot(_ABSTENTION, evidence_of(signals, rows, question)))
    return 1 / (1 + math.exp(-score))


def evidence_of(signals: Signals, rows: F64, question: str) -> F64:
    """Twelve numbers: whether one person is named, that person's share of the best passages, how far the person's best is above the
    best of others by four scores, and how good the best is. The speaker signal is left out, or it would answer for itself."""
    score = fused(signals, rows, without=("speaker",))
    named = signals.is_of_the_named(question)
    is_named = bool(named.any()) and not bool(named.all())
    order = np.argsort(-score, kind="stable")
    by_name = {name: rows[row] for row, name in enumerate(signals.names)}
    nothing = np.zeros_like(score)
    words, reply = by_name["words"], by_name["words, with the turn before"]
    meaning = by_name.get("meaning", nothing)

    def lead(row: F64) -> float:
        return float(row[named].max() - row[~named].max()) if is_named else 0.0

    shares = [float(named[order[:top]].mean()) if is_named else 0.5 for top in _TOPS]
    sixth = order[min(5, len(order) - 1)]
    best = [float(score.max()), float(meaning.max()), float(words.max()), float(score[order[0]] - score[sixth])]
    return np.asarray([float(is_named), *shares, lead(score), lead(meaning), lead(words), lead(reply), *best])
