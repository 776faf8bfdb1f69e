# SPDX-License-Identifier: Apache-2.0
"""Logits masks at work: the states of running sequences, and a packed mask as token ids. The protocol is `scheduling.masks.LogitsMask`."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ziggurat.errors import EngineError
from ziggurat.scheduling.masks import LogitsMask
from ziggurat.scheduling.protocol import SampleRequest


@dataclass(slots=True)
class _Progress:
    """The state of a sequence after the first ``num_tokens`` of its output. The lists are held, so that they can be told by identity."""

    mask: LogitsMask
    prompt_ids: Sequence[int]
    output_ids: Sequence[int]
    num_tokens: int
    state: Any

    def belongs_to(self, mask: LogitsMask, request: SampleRequest) -> bool:
        """Ids of sequences come again; their lists do not, and they only grow."""
        is_same = self.mask is mask and self.prompt_ids is request.prompt_ids and self.output_ids is request.output_ids
        return is_same and self.num_tokens <= len(request.output_ids)


class MaskStates:
    """States by sequence. A state that is not there (first token, fork, preemption, dropped) is built from the output tokens.

    Args:
        vocab_size: tokens in a mask.
        max_states: how many are kept, those used last; more than run at once are never needed.
    """

    def __init__(self, vocab_size: int, max_states: int) -> None:
        self._vocab_size = vocab_size
        self._max_states = max_states
        self._states: OrderedDict[str, _Progress] = OrderedDict()

    def allowed(self, request: SampleRequest) -> NDArray[np.int64] | None:
        """The tokens that may come next, ascending, or None if all may.

        Raises:
            EngineError: the mask failed, has too few bits, or allows nothing.
        """
        mask = request.params.logits_mask
        if mask is None:
            return None
        try:
            bits = mask.mask(self._state(mask, request))
            if bits is None:
                return None
            packed = np.frombuffer(bits, np.uint8)
        except Exception as failure:
            raise EngineError(
                f"{_where(request)} failed after {len(request.output_ids)} tokens: {type(failure).__name__}: {failure}"
            ) from failure
        if len(packed) * 8 < self._vocab_size:
            raise EngineError(
                f"{_where(request)} has {len(packed) * 8} bits for a vocabulary of {self._vocab_size} tokens"
            )
        allowed = np.flatnonzero(np.unpackbits(packed, count=self._vocab_size, bitorder="little"))
        if not len(allowed):
            raise EngineError(f"{_where(request)} allows no token after {len(request.output_ids)} tokens")
        return allowed

    def _state(self, mask: LogitsMask, request: SampleRequest) -> Any:
        seq_id, output_ids = request.seq_ids[0], request.output_ids
        progress = self._states.pop(seq_id, None)
        if progress is None or not progress.belongs_to(mask, request):
            progress = _Progress(mask, request.prompt_ids, output_ids, 0, mask.start(request.prompt_ids))
        for token_id in output_ids[progress.num_tokens :]:
            progress.state = mask.advance(progress.state, token_id)
            progress.num_tokens += 1
        self._states[seq_id] = progress
        if len(self._states) > self._max_states:
            self._states.popitem(last=False)
        return progress.state


def _where(request: SampleRequest) -> str:
    return f"the logits mask of sequence {request.seq_ids[0]!r}"
