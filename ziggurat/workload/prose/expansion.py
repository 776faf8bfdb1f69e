# SPDX-License-Identifier: Apache-2.0
"""Expanding templates with slots into English text.

A slot is `{kind}` (a fresh choice), `{kind.x}` (the choice bound to x for the whole document), `{he.x}`, `{him.x}` or
`{his.x}` (the pronoun of the name bound to x; capitalised if written so), or `{table.3}` (column 3 of a row that stays
the same within one expansion of the enclosing template).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

_SLOT = re.compile(r"\{([A-Za-z_]+)(?:\.([a-z0-9]+))?\}")
_PRONOUNS = {"girl": {"he": "she", "him": "her", "his": "her"}, "boy": {"he": "he", "him": "him", "his": "his"}}
_SENTENCE_START = re.compile(r"(^|[.!?]\"?\s+\"?|\n)([a-z])")
_ARTICLE = re.compile(r"\b([Aa]) (?=[aeio])")
_MAX_DEPTH = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Grammar:
    """Word lists by kind, templates by rule name, and tables of rows."""

    words: Mapping[str, tuple[str, ...]]
    rules: Mapping[str, tuple[str, ...]]
    tables: Mapping[str, tuple[tuple[str, ...], ...]]


@dataclass(slots=True)
class Expansion:
    """One document in the making: the grammar, the random generator and what has been bound so far."""

    grammar: Grammar
    rng: np.random.Generator
    bound: dict[str, str] = field(default_factory=dict)
    sexes: dict[str, str] = field(default_factory=dict)

    def text(self, rule: str) -> str:
        """Expands a rule and mends articles and sentence starts."""
        return polish(self.expand(self._pick(self.grammar.rules[rule])))

    def expand(self, template: str, depth: int = 0) -> str:
        """Replaces all slots of a template, recursively."""
        assert depth < _MAX_DEPTH, f"templates nest too deep at {template!r}"
        rows: dict[str, tuple[str, ...]] = {}

        def fill(match: re.Match[str]) -> str:
            return self._slot(match.group(1), match.group(2), rows, depth)

        return _SLOT.sub(fill, template)

    def _slot(self, kind: str, mark: str | None, rows: dict[str, tuple[str, ...]], depth: int) -> str:
        if kind.lower() in ("he", "him", "his"):
            assert mark is not None
            self._bind("name", mark, depth)
            word = _PRONOUNS[self.sexes[mark]][kind.lower()]
            return word.capitalize() if kind[0].isupper() else word
        if kind in self.grammar.tables:
            if kind not in rows:
                table = self.grammar.tables[kind]
                rows[kind] = table[int(self.rng.integers(len(table)))]
            assert mark is not None, f"{{{kind}}} needs a column"
            return rows[kind][int(mark)]
        return self._choose(kind, depth)[0] if mark is None else self._bind(kind, mark, depth)

    def _bind(self, kind: str, mark: str, depth: int) -> str:
        slot = f"{kind}.{mark}"
        if slot not in self.bound:
            taken = {value for key, value in self.bound.items() if key.startswith(f"{kind}.")}
            for _ in range(20):  # different marks mean different things, as far as the lists allow
                self.bound[slot], sex = self._choose(kind, depth)
                if self.bound[slot] not in taken:
                    break
            if kind == "name":
                self.sexes[mark] = sex
        return self.bound[slot]

    def _choose(self, kind: str, depth: int) -> tuple[str, str]:
        """A word or an expanded rule of that kind, and the sex of a name."""
        sex = ""
        if kind == "name":
            sex = kind = "girl" if self.rng.random() < 0.5 else "boy"
            return self._pick(self.grammar.words[kind]), sex
        if kind in self.grammar.words:
            return self._pick(self.grammar.words[kind]), sex
        return self.expand(self._pick(self.grammar.rules[kind]), depth + 1), sex

    def _pick(self, choices: tuple[str, ...]) -> str:
        return choices[int(self.rng.integers(len(choices)))]


def polish(text: str) -> str:
    """Capital letters at sentence starts, `an` before vowels, single spaces."""
    text = re.sub(r" +", " ", text).strip()
    text = _SENTENCE_START.sub(lambda match: match.group(1) + match.group(2).upper(), text)
    return _ARTICLE.sub(lambda match: match.group(1) + "n ", text)
