# SPDX-License-Identifier: Apache-2.0
"""Space to the end: what systems before paged attention set aside when they admit a request."""

from __future__ import annotations

from collections.abc import Sequence

from ziggurat.scheduling.planners.draft import Draft
from ziggurat.scheduling.protocol import SequenceView


def reserved_blocks(draft: Draft, seq: SequenceView) -> Sequence[int]:
    """Blocks of the longest text that the sequence, and each fork to come, may grow to. The last token is never fed back."""
    peak = draft.kv.peak_blocks(seq.num_prompt_tokens + max(seq.max_tokens, 1) - 1)
    return [seq.num_slots * blocks for blocks in peak]


class Reservation:
    """What is left of the pools when everybody that runs has its longest text set aside.

    Prefixes that are shared are counted for each, so a reservation that holds here holds in the store, and nobody is ever preempted
    unless blocks were taken out of circulation.
    """

    def __init__(self, draft: Draft) -> None:
        self._draft = draft
        self._left = list(draft.kv.total_blocks())
        for seq in draft.running:
            self._take(reserved_blocks(draft, seq))

    def take(self, seq: SequenceView) -> bool:
        """Set the space of one more aside. False if it was not there; then the caller admits nobody behind."""
        self._take(reserved_blocks(self._draft, seq))
        return min(self._left) >= 0

    def _take(self, blocks: Sequence[int]) -> None:
        self._left = [left - block for left, block in zip(self._left, blocks, strict=True)]
