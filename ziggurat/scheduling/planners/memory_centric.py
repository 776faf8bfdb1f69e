# SPDX-License-Identifier: Apache-2.0
"""Memory-centric batching of offline jobs: what limits a step is KV memory, not a number of requests (BatchLLM, arXiv 2412.03594)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from ziggurat.scheduling.planners.draft import Draft
from ziggurat.scheduling.planners.registry import PLANNERS
from ziggurat.scheduling.protocol import BatchPlan, EngineState, SequenceView, TokenBudget


@PLANNERS.register("memory-centric")
class MemoryCentric:
    """Chunked prefills beside all decodes, and as many sequences as memory holds to their expected end.

    1. Decodes, then running prefills, as Sarathi does.
    2. Waiting sequences are admitted while ``blocks in use + expected growth of all that run <= pool``. Growth is what is left to the
       expected length of a text, so nobody is preempted where expectations hold; where a text grows beyond its own, the last running
       sequence gives way.

    Cost per call: O(running + admitted) questions to the store. Wrong choice for interactive use: it cares for the end of the job,
    not for anybody's first token.
    """

    def plan(self, state: EngineState, budget: TokenBudget) -> BatchPlan:
        """Decide the next step."""
        draft = Draft(state, budget)
        growth = [0] * len(draft.blocks_left)
        for seq in draft.running:
            growth = [a + b for a, b in zip(growth, _growth(draft, seq), strict=True)]
        before = list(draft.blocks_left)
        draft.run_decodes()
        draft.run_prefills()
        if not draft.preempts:
            # What this step takes is part of the growth.
            taken = [then - now for then, now in zip(before, draft.blocks_left, strict=True)]
            left_to_grow = [max(0, more - now) for more, now in zip(growth, taken, strict=True)]
            self._admit(draft, state, left_to_grow)
        return draft.plan()

    def _admit(self, draft: Draft, state: EngineState, growth: Sequence[int]) -> None:
        for seq in state.waiting:
            if seq.num_slots > draft.slots_left or draft.tokens_left == 0:
                return
            uncached = seq.num_tokens - draft.kv.cached_tokens(seq.seq_id)
            price = partial(draft.kv.needed_to_admit, seq.seq_id)
            # Up to the expected end: cached blocks that become pinned, its own prompt, and its text.
            to_end = _at_most(price(uncached + _expected_tokens(seq) - seq.num_tokens), draft, seq)
            is_alone = not draft.running and not draft.admits
            if not is_alone and not draft.fits(to_end, keep=growth):
                return
            length = draft.longest(price, min(uncached, draft.tokens_left))
            if length == 0:
                return
            now = price(length)
            draft.admit(seq, length)
            growth = [more + max(0, end - first) for more, end, first in zip(growth, to_end, now, strict=True)]
            if length < uncached:
                return


def _expected_tokens(seq: SequenceView) -> int:
    """Prompt and text when it ends as expected; the last token is never fed back. At least what is there, and one more."""
    return max(seq.num_prompt_tokens + max(seq.expected_tokens - 1, 0), seq.num_tokens)


def _growth(draft: Draft, seq: SequenceView) -> Sequence[int]:
    """Blocks that a running sequence still takes to its expected end."""
    return _at_most(draft.kv.needed_blocks(seq.seq_id, _expected_tokens(seq) - seq.num_computed), draft, seq)


def _at_most(blocks: Sequence[int], draft: Draft, seq: SequenceView) -> list[int]:
    """A window never holds more than its peak. Each fork to come takes its text once more, and a copy of the block it starts in."""
    peak = draft.kv.peak_blocks(_expected_tokens(seq))
    text = draft.kv.peak_blocks(max(_expected_tokens(seq) - seq.num_prompt_tokens, 1))
    forks = seq.num_slots - 1
    return [min(b, p) + forks * (t + 1) for b, p, t in zip(blocks, peak, text, strict=True)]
