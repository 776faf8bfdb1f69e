# SPDX-License-Identifier: Apache-2.0
"""From a sequence and the length of its next chunk to what an executor needs to know of it."""

from __future__ import annotations

from ziggurat.memory.kv import KVStore
from ziggurat.scheduling.protocol import BatchItem, SampleRequest
from ziggurat.scheduling.sequence import SequenceState


def batch_item(seq: SequenceState, num_tokens: int, store: KVStore, eos_ids: tuple[int, ...]) -> BatchItem:
    """The chunk; it samples if it ends at the last known token, for the continuations that wait for this prompt too.

    Args:
        eos_ids: sorted.
    """
    sample = None
    if seq.is_sampling and seq.num_computed + num_tokens == seq.num_tokens:
        drawing = [seq, *seq.children]
        sample = SampleRequest(
            seq_ids=tuple(member.seq_id for member in drawing),
            seeds=tuple(member.seed for member in drawing),
            params=seq.params,
            prompt_ids=seq.prompt_ids,
            output_ids=seq.output_ids,
            eos_ids=() if seq.params.ignore_eos else eos_ids,
        )
    return BatchItem(
        seq_id=seq.seq_id,
        token_ids=seq.slice_ids(seq.num_computed, num_tokens),
        start=seq.num_computed,
        kv=store.view(seq.seq_id),
        sample=sample,
        read=seq.read_request(num_tokens),
        adapter=seq.adapter,
    )
