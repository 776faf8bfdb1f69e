# SPDX-License-Identifier: Apache-2.0
"""Trace formats that are JSON: Mooncake's timed rows with block hashes, and ShareGPT's conversations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from ziggurat.workload.records import Arrival
from ziggurat.workload.traces.blocks import BlockNames
from ziggurat.workload.traces.formats import (
    NO_OUTPUT,
    NO_PROMPT,
    TRACE_FORMATS,
    Dropped,
    FormatSettings,
    Shape,
    count_of,
    number,
    refuse_to_write,
    seconds_of,
)

NO_EXCHANGE = "no question with an answer"
_ASKS, _ANSWERS = ("human", "user"), ("gpt", "chatgpt", "assistant", "model", "bing", "bard")
BYTES_PER_TOKEN = 4
"""Of the estimate for text without a tokenizer; about right for English in the large vocabularies of today."""


@TRACE_FORMATS.register("mooncake")
class Mooncake:
    """Mooncake's trace (arXiv 2407.00079), which vLLM's timed traces follow: times in ms, and one hash id per block of the prompt.

    Ids are chained: equal ids mean that everything up to there is equal. Rows may come without them.
    """

    shape: ClassVar[Shape] = "jsonl"
    required: ClassVar[tuple[str, ...]] = ("timestamp", "input_length", "output_length")
    optional: ClassVar[tuple[str, ...]] = ("hash_ids",)
    holds: ClassVar[tuple[str, ...]] = ("hash_ids",)
    has_times: ClassVar[bool] = True

    def __init__(self, settings: FormatSettings) -> None:
        self._block_tokens = settings.hash_block_tokens
        self._names = BlockNames(settings.hash_block_tokens)

    def parse(self, row: Mapping[str, Any], number: int) -> list[Arrival] | Dropped:
        """See `TraceFormat.parse`."""
        t_s = seconds_of(row, "timestamp", factor=1e-3)
        prompt, output = count_of(row, "input_length"), count_of(row, "output_length")
        if not prompt or not output:
            return Dropped(reason=NO_OUTPUT if prompt else NO_PROMPT)
        hash_ids = row.get("hash_ids") or []
        if not isinstance(hash_ids, list) or not all(type(each) is int for each in hash_ids):
            raise ValueError(f"hash_ids must be a list of whole numbers, got {str(hash_ids)[:60]}")
        needed = -(-prompt // self._block_tokens)
        if hash_ids and len(hash_ids) != needed:
            raise ValueError(
                f"{len(hash_ids)} hash_ids for {prompt} tokens, but blocks of {self._block_tokens} tokens make {needed}; "
                "the number of tokens per hash id can be given"
            )
        return [
            Arrival(
                t_s=t_s,
                id=f"row-{number}",
                prompt_len=prompt,
                max_new=output,
                hash_ids=tuple(hash_ids),
                hash_block_tokens=self._block_tokens if hash_ids else 0,
            )
        ]

    def write(self, arrival: Arrival) -> dict[str, Any]:
        """See `TraceFormat.write`. Hash ids are numbered anew when the trace knows the prompt otherwise (tokens, finer blocks)."""
        row: dict[str, Any] = {
            "timestamp": number(round(arrival.t_s * 1000, 3)),
            "input_length": arrival.prompt_len,
            "output_length": arrival.max_new,
        }
        if arrival.hash_ids and arrival.hash_block_tokens == self._block_tokens:
            return {**row, "hash_ids": list(arrival.hash_ids)}
        names = self._names.of(arrival)
        return row if names is None else {**row, "hash_ids": names}


@TRACE_FORMATS.register("sharegpt")
class ShareGPT:
    """Conversations as ShareGPT's dumps have them: every question with an answer is a request whose prompt is all text before the answer.

    There are no times: conversation i starts ``conversation_gap_s`` after the one before, its questions follow ``turn_gap_s`` apart.
    Without ``encode`` a token is four bytes of UTF-8; those stand as hash ids of one token each, so that shared text stays shared.
    """

    shape: ClassVar[Shape] = "json"
    required: ClassVar[tuple[str, ...]] = ("conversations",)
    optional: ClassVar[tuple[str, ...]] = ("id",)
    holds: ClassVar[tuple[str, ...]] = ()
    has_times: ClassVar[bool] = False

    def __init__(self, settings: FormatSettings) -> None:
        self._settings = settings

    def parse(self, row: Mapping[str, Any], number: int) -> list[Arrival] | Dropped:
        """See `TraceFormat.parse`."""
        turns = _turns(row["conversations"])
        session = f"{number}"
        history: list[int] = []
        arrivals: list[Arrival] = []
        for place, (role, text) in enumerate(turns):
            before = turns[place - 1][0] if place else ""
            ids = self._encode(text)
            if role in _ANSWERS and before in _ASKS and history and ids:
                arrivals.append(self._arrival(session, number, len(arrivals), history, len(ids)))
            history += ids
        return arrivals or Dropped(reason=NO_EXCHANGE)

    def write(self, arrival: Arrival) -> dict[str, Any]:
        """See `TraceFormat.write`: refused, there is no text."""
        raise refuse_to_write("sharegpt", "text")

    def _encode(self, text: str) -> Sequence[int]:
        if self._settings.encode is not None:
            return self._settings.encode(text)
        raw = text.encode("utf-8", "surrogatepass")
        # The length is part of the number, so that a short last piece is not taken for a longer one that begins with zeros.
        pieces = (raw[start : start + BYTES_PER_TOKEN] for start in range(0, len(raw), BYTES_PER_TOKEN))
        return [int.from_bytes(piece, "big") * 8 + len(piece) for piece in pieces]

    def _arrival(self, session: str, number: int, turn: int, prompt: Sequence[int], max_new: int) -> Arrival:
        settings = self._settings
        is_estimate = settings.encode is None
        return Arrival(
            t_s=(number - 1) * settings.conversation_gap_s + turn * settings.turn_gap_s,
            id=f"row-{number}.{turn}",
            session=session,
            max_new=max_new,
            prompt_len=len(prompt),
            prompt_ids=None if is_estimate else tuple(prompt),
            hash_ids=tuple(prompt) if is_estimate else (),
            hash_block_tokens=1 if is_estimate else 0,
        )


def _turns(raw: Any) -> list[tuple[str, str]]:
    if not isinstance(raw, list):
        raise ValueError(f"conversations must be a list of turns, got {str(raw)[:60]!r}")
    turns = []
    for place, turn in enumerate(raw, start=1):
        role, text = (turn.get("from"), turn.get("value")) if isinstance(turn, dict) else (None, None)
        if not isinstance(role, str) or not isinstance(text, str):
            raise ValueError(f"turn {place} must have the texts from and value, got {str(turn)[:60]!r}")
        turns.append((role, text))
    return turns
