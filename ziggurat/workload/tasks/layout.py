# SPDX-License-Identifier: Apache-2.0
"""Token layout shared by every generated task: which ids are words, marks and special tokens.

The first ids of the embedded vocabulary are fixed by construction (special tokens, then the 256 byte tokens in the
order of GPT-2's byte alphabet), so the curriculum can be generated before a tokenizer exists and stays valid after.
"""

from __future__ import annotations

from dataclasses import dataclass

SPECIAL_TOKENS = (
    "<|end|>",
    "<|begin|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|turn|>",
    "<|pad|>",
    "<|unused|>",
)
NUM_BYTE_TOKENS = 256
VOCABULARY_SIZE = 1024


def byte_alphabet() -> tuple[int, ...]:
    """Byte values in the order in which a byte-level BPE numbers them (printable ones first, as in GPT-2)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [value for value in range(256) if value not in set(printable)]
    return tuple(printable + hidden)


_BYTE_IDS = {value: len(SPECIAL_TOKENS) + rank for rank, value in enumerate(byte_alphabet())}


def byte_token(character: str) -> int:
    """Id of the token that is the single ASCII character `character`."""
    return _BYTE_IDS[ord(character)]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLayout:
    """What a task generator needs to know of a vocabulary.

    words: ids of whole-word tokens (leading space), the stuff of keys and values.
    fill: ids that may stand anywhere in a random segment.
    """

    words: tuple[int, ...]
    fill: tuple[int, ...]
    begin: int = SPECIAL_TOKENS.index("<|begin|>")
    end: int = SPECIAL_TOKENS.index("<|end|>")
    colon: int = byte_token(":")
    newline: int = byte_token("\n")


def plain_layout() -> TokenLayout:
    """The layout of a vocabulary whose merges are not known yet: every merge counts as a word."""
    first_merge = len(SPECIAL_TOKENS) + NUM_BYTE_TOKENS
    merges = tuple(range(first_merge, VOCABULARY_SIZE))
    return TokenLayout(words=merges, fill=tuple(range(len(SPECIAL_TOKENS), VOCABULARY_SIZE)))
