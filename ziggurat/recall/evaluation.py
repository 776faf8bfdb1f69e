# SPDX-License-Identifier: Apache-2.0
"""How well evidence is found: recall, reciprocal rank and gain per question, by category, and whether a missing answer is noticed.

One index per conversation, the question's text is the whole query, one turn is one document. Questions whose evidence does not exist are
dropped and counted, not scored.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ziggurat.recall.encoder import Encoder
from ziggurat.recall.fusion import answer_probability, fused
from ziggurat.recall.locomo import Conversation, Question
from ziggurat.recall.signals import F64, Passage, Signals

METRICS = ("recall@5", "recall@10", "full@10", "mrr", "ndcg@10")
ADVERSARIAL = 5


def figures(ranking: Sequence[str], evidence: frozenset[str]) -> dict[str, float]:
    """The metrics of one question.

    Args:
        ranking: ids, best first.
        evidence: ids that should be found; not empty.
    """
    places = [place for place, each in enumerate(ranking) if each in evidence]
    gain = sum(1 / np.log2(place + 2) for place in places if place < 10)
    ideal = sum(1 / np.log2(place + 2) for place in range(min(10, len(evidence))))
    found = {k: sum(place < k for place in places) for k in (5, 10)}
    return {
        "recall@5": found[5] / len(evidence),
        "recall@10": found[10] / len(evidence),
        "full@10": float(found[10] == len(evidence)),
        "mrr": 1 / (1 + places[0]) if places else 0.0,
        "ndcg@10": float(gain / ideal),
    }


@dataclass(slots=True)
class Tally:
    """Metrics of many questions of one method."""

    rows: list[tuple[int, dict[str, float]]] = field(default_factory=list)

    def add(self, question: Question, passages: Sequence[Passage], scores: F64) -> None:
        """One ranking; equal scores in the order of the conversation."""
        order = np.argsort(-scores, kind="stable")
        self.rows.append((question.category, figures([passages[place].id for place in order], question.evidence)))

    def as_dict(self) -> dict[str, Any]:
        """Means over all questions, and per category."""
        categories = sorted({category for category, _ in self.rows})
        by_category = {str(each): self._means([row for c, row in self.rows if c == each]) for each in categories}
        return {**self._means([row for _, row in self.rows]), "by_category": by_category}

    @staticmethod
    def _means(rows: Sequence[dict[str, float]]) -> dict[str, float]:
        return {**{name: float(np.mean([row[name] for row in rows])) for name in METRICS}, "n": len(rows)}


def passages_of(conversation: Conversation) -> list[Passage]:
    """Its turns."""
    return [
        Passage(id=turn.id, session=str(turn.session), speaker=turn.speaker, date=turn.date, text=turn.text)
        for turn in conversation.turns
    ]


def evaluate(
    conversations: Sequence[Conversation],
    encoder: Encoder | None,
    *,
    progress: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> dict[str, Any]:
    """The contract of ``bench recall``. Without an encoder ``dense`` is None and ``hybrid`` has the signals of words and speakers."""
    tallies = {"bm25": Tally(), "dense": Tally(), "hybrid": Tally()}
    sure: list[tuple[bool, float]] = []
    times: list[float] = []
    for number, conversation in enumerate(conversations):
        progress(number, len(conversations), f"indexing {conversation.id}")
        signals = Signals(passages_of(conversation), encoder)
        for question in conversation.questions:
            began = time.perf_counter()
            rows = signals.of(question.text)
            scores = fused(signals, rows)
            times.append(time.perf_counter() - began)
            tallies["bm25"].add(question, signals.passages, signals.words_alone(question.text))
            tallies["hybrid"].add(question, signals.passages, scores)
            if encoder is not None:
                tallies["dense"].add(question, signals.passages, signals.meaning_alone(question.text))
            sure.append((question.category != ADVERSARIAL, answer_probability(signals, rows, question.text)))
    progress(len(conversations), len(conversations), "")
    return {
        "n": len(sure),
        "dropped": sum(conversation.num_dropped for conversation in conversations),
        "encoder": None if encoder is None else encoder.name,
        "bm25": tallies["bm25"].as_dict(),
        "dense": None if encoder is None else tallies["dense"].as_dict(),
        "hybrid": tallies["hybrid"].as_dict(),
        "abstention_auroc": auroc(sure),
        "latency_ms": {name: 1e3 * float(np.quantile(times, share)) for name, share in (("p50", 0.5), ("p99", 0.99))},
    }


def auroc(pairs: Sequence[tuple[bool, float]]) -> float | None:
    """The chance that a positive scores above a negative, ties half; None if one of the two is missing."""
    positive = np.asarray([score for is_positive, score in pairs if is_positive])
    negative = np.sort([score for is_positive, score in pairs if not is_positive])
    if not len(positive) or not len(negative):
        return None
    below = np.searchsorted(negative, positive, side="left")
    not_above = np.searchsorted(negative, positive, side="right")
    return float(np.mean(below + not_above) / (2 * len(negative)))
