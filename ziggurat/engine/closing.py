# SPDX-License-Identifier: Apache-2.0
"""The shortest way out of a JSON text: which tokens close what is open, so that an answer is whole before its tokens run out.

::

    {"title": "On the riv|            25 tokens are left, and `"}` is enough
    {"title": "On the riv"}

A greedy walk over the grammar: end if the text may end, close a string, an object, an array, else the smallest value. It is not
always the shortest way, but it only has to be short.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# In the order in which they are tried outside of strings: ends first (a comma ends a number, Z a time, @ the first half of an
# address), then small values.
_OUTSIDE = '}],"@Z0n:tf1-{['
# All of these are allowed at one place only within a string.
_WITHIN = 'a" '


class Closer:
    """Finds ways out for one tokenizer.

    Args:
        tokenizer: llguidance's.
        eos_ids: tokens that end a text.
    """

    def __init__(self, tokenizer: Any, eos_ids: Sequence[int]) -> None:
        self._eos_ids = tuple(eos_ids)
        ids = {character: tokenizer.greedy_tokenize(character) for character in {*_OUTSIDE, *_WITHIN}}
        # Tokenizers without a token for one of them do without.
        self._id_of: dict[str, int] = {character: found[0] for character, found in ids.items() if len(found) == 1}
        self._within = [self._id_of[character] for character in _WITHIN if character in self._id_of]

    def path(self, matcher: Any, max_tokens: int) -> list[int] | None:
        """Tokens from a state of the grammar to the end of the text, the end-of-sequence token included; None if there are more.

        Args:
            matcher: llguidance's; not changed.
        """
        walk = matcher.deep_copy()
        path: list[int] = []
        while len(path) < max_tokens:
            token_ids = walk.compute_ff_tokens() or [self._next(walk.compute_bitmask())]
            if token_ids == [None] or walk.is_error():
                return None
            for token_id in token_ids:
                path.append(token_id)
                if token_id in self._eos_ids:
                    return path if len(path) <= max_tokens else None
                if not walk.consume_token(token_id):
                    return None
        return None

    def _next(self, bits: bytes) -> int | None:
        for token_id in self._eos_ids:
            if _is_set(bits, token_id):
                return token_id
        if len(self._within) == len(_WITHIN) and all(_is_set(bits, token_id) for token_id in self._within):
            return self._id_of['"']
        for character in _OUTSIDE:
            token_id = self._id_of.get(character, -1)
            if token_id >= 0 and _is_set(bits, token_id):
                return token_id
        # The middle of a name, or of a text with a pattern: whatever may come.
        return next(iter(first_tokens(bits, 1)), None)


def first_tokens(bits: bytes, count: int) -> list[int]:
    """The lowest ids of a mask, at most ``count``."""
    found: list[int] = []
    for index, byte in enumerate(bits):
        while byte and len(found) < count:
            found.append(index * 8 + (byte & -byte).bit_length() - 1)
            byte &= byte - 1
        if len(found) == count:
            break
    return found


def _is_set(bits: bytes, token_id: int) -> bool:
    return bool(bits[token_id >> 3] >> (token_id & 7) & 1)
