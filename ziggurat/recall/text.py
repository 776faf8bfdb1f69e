# SPDX-License-Identifier: Apache-2.0
"""Words of a text for lexical search: lower case, without frequent words, endings stripped. Pinned: another stemmer moves every figure."""

from __future__ import annotations

import re

_WORD = re.compile(r"[a-z0-9]+(?:'[a-z]+)?")
STOP_WORDS = frozenset(
    """a an and are as at be been but by did do does for from had has have he her his how i if in is it its me my of on or our she so
    that the their them they this to was we were what when where which who why will with would you your""".split()  # noqa: SIM905
)
# Longest first; a stem keeps at least three letters.
_ENDINGS = ("ingly", "ments", "ings", "edly", "ment", "ies", "ied", "ing", "ed", "es", "ly", "s")
_KEPT = 3


def words(text: str) -> list[str]:
    """Stems of the words that are not stop words, in order."""
    return [stem(word) for word in _plain_words(text)]


def stem_of_word(text: str) -> dict[str, str]:
    """The words of a text as they are written, each with its stem; to show which of them count."""
    return {word: stem(word) for word in _plain_words(text)}


def _plain_words(text: str) -> list[str]:
    return [word for word in _WORD.findall(text.lower()) if word.removesuffix("'s") not in STOP_WORDS]


def stem(word: str) -> str:
    """Without its ending: ``studies`` and ``studied`` become ``study``, ``running`` becomes ``run``."""
    word = word.removesuffix("'s").replace("'", "")
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= _KEPT:
            if ending == "s" and word.endswith("ss"):
                return word
            base = word[: -len(ending)]
            if ending in ("ies", "ied"):
                return base + "y"
            if len(base) > _KEPT and base[-1] == base[-2] and base[-1] not in "lsz":
                base = base[:-1]
            return base
    return word
