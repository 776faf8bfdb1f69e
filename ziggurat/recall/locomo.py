# SPDX-License-Identifier: Apache-2.0
"""LoCoMo: long conversations with questions and the turns that answer them (arXiv 2402.17753, CC BY-NC: for evaluation, never packaged).

Known defects of the file are mended here: several ids in one evidence string, zeros in ids, ids of turns that do not exist.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ziggurat.errors import ConfigError

_SESSION = re.compile(r"session_(\d+)")
_EVIDENCE = re.compile(r"D:?(\d+):(\d+)")
CATEGORIES = {1: "multi-hop", 2: "temporal", 3: "open-domain", 4: "single-hop", 5: "adversarial"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One utterance. ``place`` counts through the conversation."""

    id: str
    session: int
    place: int
    speaker: str
    date: str
    text: str

    @property
    def document(self) -> str:
        """What is indexed: date, speaker, words, and the caption of an image."""
        return f"{self.date} {self.speaker}: {self.text}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A question and the ids of the turns that answer it; for category 5 of turns that seem to."""

    text: str
    category: int
    evidence: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """One sample.

    Attributes:
        num_dropped: questions without any evidence that exists.
    """

    id: str
    speakers: tuple[str, str]
    turns: tuple[Turn, ...]
    questions: tuple[Question, ...]
    num_dropped: int


def read_locomo(path: Path) -> list[Conversation]:
    """All conversations of a file.

    Raises:
        ConfigError: it cannot be read, or is not in LoCoMo's form.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from None
    samples = data if isinstance(data, list) else [data]
    try:
        found = [_conversation(sample) for sample in samples]
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} is not in LoCoMo's form: {error!r} is missing or of the wrong type") from None
    if not found:
        raise ConfigError(f"{path} has no conversation")
    return found


def _conversation(sample: dict[str, Any]) -> Conversation:
    conversation = sample["conversation"]
    turns = tuple(_turns(conversation))
    known = {turn.id for turn in turns}
    questions = [
        Question(
            text=str(item["question"]),
            category=int(item["category"]),
            evidence=frozenset(_evidence(item.get("evidence") or ())) & known,
        )
        for item in sample["qa"]
    ]
    kept = tuple(question for question in questions if question.evidence)
    return Conversation(
        id=str(sample.get("sample_id", "")),
        speakers=(str(conversation["speaker_a"]), str(conversation["speaker_b"])),
        turns=turns,
        questions=kept,
        num_dropped=len(questions) - len(kept),
    )


def _turns(conversation: dict[str, Any]) -> Iterator[Turn]:
    sessions = sorted(int(found.group(1)) for key in conversation if (found := _SESSION.fullmatch(key)))
    place = 0
    for number in sessions:
        date = str(conversation.get(f"session_{number}_date_time", ""))
        for turn in conversation[f"session_{number}"]:
            caption = f" [image: {turn['blip_caption']}]" if turn.get("blip_caption") else ""
            yield Turn(
                id=str(turn["dia_id"]),
                session=number,
                place=place,
                speaker=str(turn["speaker"]),
                date=date,
                text=str(turn["text"]) + caption,
            )
            place += 1


def _evidence(strings: Any) -> Iterator[str]:
    for text in strings:
        for session, turn in _EVIDENCE.findall(str(text)):
            yield f"D{int(session)}:{int(turn)}"
