# SPDX-License-Identifier: Apache-2.0
"""Generated English prose: stories, facts, dialogues, chats and descriptions of Ziggurat, from templates of our own.

Everything is made from the word lists and templates in `grammar/`; no outside text is used. The held-out split uses
names, places, things and towns that never occur in the training split.
"""

from __future__ import annotations

import functools
import tomllib
from dataclasses import dataclass
from importlib import resources
from typing import Literal

import numpy as np

from ziggurat.workload.prose.expansion import Expansion, Grammar

Split = Literal["train", "held_out"]
_FILES = ("words", "stories", "facts", "dialogues", "chats", "ziggurat")
_KINDS = ("story", "story", "story", "fact_page", "fact_page", "dialogue", "description")


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """One user message and the assistant's answer."""

    user: str
    assistant: str


@functools.cache
def grammar(split: Split) -> Grammar:
    """The grammar of a split; the held-out one has other names, places, animals, things, food and towns."""
    words: dict[str, tuple[str, ...]] = {}
    rules: dict[str, tuple[str, ...]] = {}
    tables: dict[str, tuple[tuple[str, ...], ...]] = {}
    for name in _FILES:
        text = (resources.files(__package__) / "grammar" / f"{name}.toml").read_text(encoding="utf-8")
        raw = tomllib.loads(text)
        words.update({kind: tuple(entry.split()) for kind, entry in raw.get("words", {}).items()})
        if split == "held_out":
            words.update({kind: tuple(entry.split()) for kind, entry in raw.get("held_out", {}).items()})
        rules.update({rule: tuple(templates) for rule, templates in raw.get("rules", {}).items()})
        tables.update({table: tuple(tuple(row) for row in rows) for table, rows in raw.get("tables", {}).items()})
    return Grammar(words=words, rules=rules, tables=tables)


def document(rng: np.random.Generator, split: Split = "train") -> str:
    """A story, a page of facts, a dialogue or a description: one to twenty sentences."""
    kind = _KINDS[int(rng.integers(len(_KINDS)))]
    return Expansion(grammar(split), rng).text(kind)


def chat(rng: np.random.Generator, split: Split = "train") -> tuple[Exchange, ...]:
    """A conversation of one to four exchanges."""
    text = Expansion(grammar(split), rng).text("chat")
    exchanges = []
    for part in text.split(" || "):
        user, assistant = part.split(" >> ")
        exchanges.append(Exchange(user=user.strip(), assistant=_capital(assistant.strip())))
    return tuple(exchanges)


def all_words(split: Split = "train") -> tuple[str, ...]:
    """Every word of the lists of a split, sorted."""
    return tuple(sorted({word for words in grammar(split).words.values() for word in words}))


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
