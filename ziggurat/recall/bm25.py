# SPDX-License-Identifier: Apache-2.0
"""BM25 (Okapi, as in Robertson and Zaragoza 2009) over postings that grow: add and remove documents, exact scores at any time."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from typing import Generic, TypeVar

from ziggurat.recall.text import words

K1, B = 1.2, 0.75
Key = TypeVar("Key", bound=Hashable)


class BM25(Generic[Key]):
    """Documents by key.

    Args:
        k1: how soon repeats of a word stop to count.
        b: how much long documents are held back, 0 to 1.

    ``scores`` costs the postings of the query's words; ``add`` and ``remove`` the words of the document.
    """

    def __init__(self, *, k1: float = K1, b: float = B) -> None:
        self.k1, self.b = k1, b
        self._postings: dict[str, dict[Key, int]] = {}
        self._lengths: dict[Key, int] = {}
        self._total = 0

    def __len__(self) -> int:
        return len(self._lengths)

    def __contains__(self, key: Key) -> bool:
        return key in self._lengths

    def add(self, key: Key, text: str) -> None:
        """File a document; one of that key that was there is replaced."""
        if key in self._lengths:
            self.remove(key)
        found = words(text)
        for word, count in Counter(found).items():
            self._postings.setdefault(word, {})[key] = count
        self._lengths[key] = len(found)
        self._total += len(found)

    def remove(self, key: Key) -> None:
        """Forget a document; nothing happens if it is not there. Costs the vocabulary."""
        length = self._lengths.pop(key, None)
        if length is None:
            return
        self._total -= length
        for word in [word for word, documents in self._postings.items() if key in documents]:
            del self._postings[word][key]
            if not self._postings[word]:
                del self._postings[word]

    def scores(self, query: str, keys: Iterable[Key] | None = None) -> dict[Key, float]:
        """Score of every document that shares a word with the query.

        Args:
            keys: only these; statistics stay those of all documents.
        """
        wanted = None if keys is None else set(keys)
        found: dict[Key, float] = {}
        if not self._lengths:
            return found
        mean = self._total / len(self._lengths) or 1.0
        for word, times in Counter(words(query)).items():
            documents = self._postings.get(word)
            if documents is None:
                continue
            weight = times * self.rarity(len(documents))
            for key, count in documents.items():
                if wanted is None or key in wanted:
                    length = 1 - self.b + self.b * self._lengths[key] / mean
                    found[key] = found.get(key, 0.0) + weight * count * (self.k1 + 1) / (count + self.k1 * length)
        return found

    def rarity(self, num_documents: int) -> float:
        """Weight of a word that so many documents have; above 0 even where most have it."""
        return math.log(1 + (len(self._lengths) - num_documents + 0.5) / (num_documents + 0.5))

    def explain(self, query: str, key: Key) -> dict[str, float]:
        """Share of each word of the query in a document's score, largest first."""
        parts = {word: self.scores(word, [key]).get(key, 0.0) for word in dict.fromkeys(words(query))}
        return dict(sorted(((w, s) for w, s in parts.items() if s), key=lambda part: -part[1]))


def ranked(scores: dict[Key, float], order: Sequence[Key] = ()) -> list[Key]:
    """Keys by falling score; equal ones in the order given, or as they came."""
    places = {key: place for place, key in enumerate(order)}
    return sorted(scores, key=lambda key: (-scores[key], places.get(key, 0)))
