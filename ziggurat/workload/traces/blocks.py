# SPDX-License-Identifier: Apache-2.0
"""What a trace knows of shared beginnings, as numbers: equal numbers at one place after equal ones are equal tokens.

Four kinds of knowledge, best first: token ids, hash ids of blocks, the session (turns of a session are taken to repeat all that came
before), or nothing (then no request shares anything, and every figure about sharing is a lower bound).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from ziggurat.errors import TraceError
from ziggurat.workload.records import Arrival

PrefixSource = Literal["token_ids", "hash_ids", "session", "none"]


def prefix_source(arrival: Arrival) -> PrefixSource:
    """How the beginning of its prompt is known."""
    if arrival.prompt_ids is not None:
        return "token_ids"
    if arrival.hash_ids:
        return "hash_ids"
    return "none" if arrival.session is None else "session"


def unit_tokens(arrival: Arrival, block_tokens: int) -> int:
    """The most tokens per number that both the trace's knowledge and blocks of that size can be cut into."""
    known = {"token_ids": 1, "hash_ids": arrival.hash_block_tokens}.get(prefix_source(arrival), block_tokens)
    return math.gcd(known, block_tokens)


class PrefixSymbols:
    """Prompts as numbers of ``unit_tokens`` tokens each, the same for every prompt of a trace.

    Args:
        block_tokens: blocks of the cache; a whole number of units.
    """

    def __init__(self, block_tokens: int) -> None:
        self.block_tokens = block_tokens
        self.unit: int | None = None
        self._streams: dict[tuple[str, str], int] = {}

    def of(self, arrival: Arrival) -> Sequence[int]:
        """One number per unit, the last unit may be partial.

        Raises:
            TraceError: earlier prompts were known in units of another size.
        """
        source = prefix_source(arrival)
        if self.unit is None or source in ("token_ids", "hash_ids"):
            unit = unit_tokens(arrival, self.block_tokens)
            if self.unit is not None and unit != self.unit:
                raise TraceError(
                    f"{arrival.id}: its prompt is known in units of {unit} tokens and earlier ones in units of {self.unit}; "
                    "convert the parts of the trace one by one"
                )
            self.unit = unit
        if source == "token_ids":
            assert arrival.prompt_ids is not None
            return arrival.prompt_ids
        if source == "hash_ids":
            parts = arrival.hash_block_tokens // self.unit
            count = -(-arrival.prompt_len // self.unit)
            if parts == 1:
                return arrival.hash_ids
            return [each * parts + part for each in arrival.hash_ids for part in range(parts)][:count]
        key = ("session", arrival.session) if arrival.session is not None else ("id", arrival.id)
        stream = self._streams.setdefault(key, len(self._streams) + 1) << 40
        # Below 0, where no hash id and no token id is.
        return [-(stream + place) for place in range(-(-arrival.prompt_len // self.unit))]


class BlockNames:
    """Names of blocks in the manner of Mooncake: one number per block and beginning, in order of first appearance."""

    def __init__(self, block_tokens: int) -> None:
        self.block_tokens = block_tokens
        self._symbols = PrefixSymbols(block_tokens)
        self._names: dict[tuple[int | str, tuple[int, ...]], int] = {}

    @property
    def num_distinct(self) -> int:
        """Names given so far."""
        return len(self._names)

    def of(self, arrival: Arrival) -> list[int] | None:
        """One name per block, the last block may be partial; None when nothing is known of the prompt."""
        if prefix_source(arrival) == "none":
            return None
        symbols = self._symbols.of(arrival)
        assert self._symbols.unit is not None
        step = self.block_tokens // self._symbols.unit
        # Another model's KV is of no use, whatever the text.
        before: int | str = arrival.model
        names = []
        for start in range(0, len(symbols), step):
            before = self._names.setdefault((before, tuple(symbols[start : start + step])), len(self._names))
            names.append(before)
        return names
