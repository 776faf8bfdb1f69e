# SPDX-License-Identifier: Apache-2.0
"""The executor that computes nothing: tokens are a pure function of sequence, seed and position. For tests and simulation."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

from ziggurat.errors import ConfigError
from ziggurat.scheduling.protocol import Batch, SampledToken, SampleRequest, StepResult


class NullExecutor:
    """Deterministic tokens, no time, no tensors.

    The token depends on the sequence's id and seed and on its position only, so batching, chunking and preemption cannot change
    it. Logits masks are not asked: there are no logits. End-of-sequence tokens never come unless ``eos_rate`` asks for them, and
    then not before ``min_tokens``.

    Args:
        vocab_size: tokens are in [0, vocab_size).
        eos_rate: share of tokens that are the request's first end-of-sequence token.

    Raises:
        ConfigError: fewer than two tokens, or a rate outside 0 .. 1.
    """

    def __init__(self, *, vocab_size: int = 32_000, eos_rate: float = 0.0) -> None:
        if vocab_size < 2 or not 0 <= eos_rate <= 1:
            raise ConfigError(
                f"vocab_size must be at least 2 (got {vocab_size}) and eos_rate in 0 .. 1 (got {eos_rate})"
            )
        self._vocab_size = vocab_size
        self._eos_rate = eos_rate

    def run(self, batch: Batch) -> StepResult:
        """One token per sequence that asks for one. Tokens of prompts are certain, and an embedding is the number of its rows."""
        tokens = {}
        prompt_logprobs: dict[str, tuple[SampledToken, ...]] = {}
        pooled: dict[str, Sequence[float]] = {}
        for item in batch.items:
            if item.read is not None and item.read.kind == "logprobs":
                prompt_logprobs[item.seq_id] = tuple(
                    SampledToken(token_id=token_id, logprob=0.0, rank=1) for token_id in item.read.next_ids
                )
            elif item.read is not None:
                pooled[item.seq_id] = ((item.read.total or (0.0,))[0] + item.read.num_rows,)
            if item.sample is not None:
                position = item.start + len(item.token_ids)
                for seq_id, seed in zip(item.sample.seq_ids, item.sample.seeds, strict=True):
                    tokens[seq_id] = self._token(seq_id, seed, position, item.sample)
        return StepResult(tokens=tokens, prompt_logprobs=prompt_logprobs, pooled=pooled)

    def _token(self, seq_id: str, seed: int, position: int, sample: SampleRequest) -> SampledToken:
        digest = blake2b(f"{seq_id}/{seed}/{position}".encode(), digest_size=16).digest()
        is_allowed = len(sample.output_ids) >= sample.params.min_tokens
        if sample.eos_ids and is_allowed and int.from_bytes(digest[8:], "little") < self._eos_rate * 2**64:
            return SampledToken(token_id=sample.eos_ids[0])
        token_id = int.from_bytes(digest[:8], "little") % self._vocab_size
        ends = {*sample.eos_ids, *sample.params.stop_token_ids}
        for _ in range(len(ends)):
            if token_id in ends:
                token_id = (token_id + 1) % self._vocab_size
        return SampledToken(token_id=token_id)
