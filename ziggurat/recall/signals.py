# SPDX-License-Identifier: Apache-2.0
"""What speaks for a passage as the answer to a question, one signal at a time: words and meaning, of the passage alone, with its
neighbours, and of its whole session; and who said it.

A question about a conversation seldom repeats the words of the turn that answers it, but often those of the turns around it: what was
asked just before, the session's topic. Signals are z-scored over all passages, so that they can be added.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ziggurat.recall.bm25 import BM25
from ziggurat.recall.encoder import F32, Encoder

F64 = NDArray[np.float64]
# Means over the best passages of a session; one alone would be an echo of the passage's own signal.
SESSION_TOP = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """Something that was said or written.

    Attributes:
        session: passages of one session are neighbours, in their order.
        date: as it is written; may be empty.
    """

    id: str
    session: str
    speaker: str
    date: str
    text: str

    @property
    def line(self) -> str:
        """Who said what."""
        return f"{self.speaker}: {self.text}" if self.speaker else self.text

    @property
    def dated(self) -> str:
        """With its date."""
        return f"{self.date} {self.line}".strip()


class Signals:
    """Passages, indexed for every signal.

    Args:
        encoder: None leaves the signals of meaning out.

    Attributes:
        names: of the signals, in the order of the rows of `of`.
    """

    def __init__(self, passages: Sequence[Passage], encoder: Encoder | None = None) -> None:
        self.passages = tuple(passages)
        self.encoder = encoder
        sessions = list(dict.fromkeys(passage.session for passage in passages))
        place = {session: index for index, session in enumerate(sessions)}
        self._session_of = np.asarray([place[passage.session] for passage in passages], dtype=np.int64)
        self._speakers = np.asarray([passage.speaker.lower() for passage in passages])
        self._known_speakers = sorted({passage.speaker.lower() for passage in passages if passage.speaker})
        self._words = {
            "words": self._index(lambda i: passages[i].dated),
            "words, 3 turns": self._index(lambda i: self._joined(i, 1, 1, is_dated=True)),
            "words, 7 turns": self._index(lambda i: self._joined(i, 3, 3, is_dated=True)),
            "words, with the turn before": self._index(lambda i: self._joined(i, 1, 0, is_dated=True)),
        }
        self._session_words: BM25[int] = BM25()
        for session, index in place.items():
            lines = [passage for passage in passages if passage.session == session]
            self._session_words.add(index, " ".join(line.line for line in lines) + f" {lines[0].date}")
        self._vectors: dict[str, F32] = {}
        if encoder is not None:
            self._vectors = {
                "meaning, dated": encoder.encode([passage.dated for passage in passages]),
                "meaning": encoder.encode([passage.line for passage in passages]),
                "meaning, 3 turns": encoder.encode(
                    [self._joined(i, 1, 1, is_dated=False) for i in range(len(passages))]
                ),
            }
        self.names = (
            *self._words,
            "words, session",
            *self._vectors,
            *(("meaning, session",) if self._vectors else ()),
            "speaker",
        )

    def of(self, question: str) -> F64:
        """[signals, passages], z-scored."""
        rows = [self._scores(index, question) for index in self._words.values()]
        by_session = self._session_words.scores(question)
        rows.append(np.asarray([by_session.get(int(index), 0.0) for index in self._session_of]))
        if self.encoder is not None:
            asked = self.encoder.encode([question])[0]
            close = {name: vectors @ asked for name, vectors in self._vectors.items()}
            rows += [values.astype(np.float64) for values in close.values()]
            rows.append(self._session_means(close["meaning"]))
        rows.append(self.is_of_the_named(question).astype(np.float64))
        return np.stack([z_scores(row) for row in rows])

    def words_alone(self, question: str) -> F64:
        """The plain baseline: BM25 of the passage plus BM25 of its three turns. [passages]."""
        return self._scores(self._words["words"], question) + self._scores(self._words["words, 3 turns"], question)

    def meaning_alone(self, question: str) -> F64:
        """Closeness of the dated passage. [passages]."""
        assert self.encoder is not None
        return np.asarray(self._vectors["meaning, dated"] @ self.encoder.encode([question])[0], dtype=np.float64)

    def is_of_the_named(self, question: str) -> NDArray[np.bool_]:
        """Which passages the person said whom the question names; none if it names nobody or several."""
        asked = question.lower()
        named = [speaker for speaker in self._known_speakers if speaker in asked]
        if len(named) != 1:
            return np.zeros(len(self.passages), dtype=np.bool_)
        return np.asarray(self._speakers == named[0])

    def _index(self, text_of: Callable[[int], str]) -> BM25[int]:
        index: BM25[int] = BM25()
        for place in range(len(self.passages)):
            index.add(place, text_of(place))
        return index

    def _joined(self, place: int, before: int, after: int, *, is_dated: bool) -> str:
        """The passage with its neighbours in the session."""
        near = self.passages[max(0, place - before) : place + after + 1]
        session = self.passages[place].session
        return " ".join(each.dated if is_dated else each.line for each in near if each.session == session)

    def _scores(self, index: BM25[int], question: str) -> F64:
        row = np.zeros(len(self.passages))
        for place, score in index.scores(question).items():
            row[place] = score
        return row

    def _session_means(self, close: F32) -> F64:
        found = np.zeros(int(self._session_of.max()) + 1)
        for session in range(len(found)):
            found[session] = np.mean(np.sort(close[self._session_of == session])[-SESSION_TOP:])
        return np.asarray(found[self._session_of])


def z_scores(row: F64) -> F64:
    """Mean 0 and deviation 1; a row that says the same of all says nothing."""
    deviation = float(row.std())
    return np.zeros_like(row) if deviation == 0 else (row - row.mean()) / deviation
