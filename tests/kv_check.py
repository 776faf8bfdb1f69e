# SPDX-License-Identifier: Apache-2.0
"""An executor whose arithmetic is a hash: it writes into blocks and reads through block tables, so any mistake in tables, copies,
sharing, preemption or recompute shows as a wrong token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from hashlib import blake2b

from ziggurat.scheduling.null import NullExecutor
from ziggurat.scheduling.protocol import Batch, BatchItem, SampledToken, StepResult

START = b"start"


def chain(previous: bytes, token_id: int) -> bytes:
    return blake2b(previous + token_id.to_bytes(8, "little"), digest_size=8).digest()


def next_token(state: bytes, seed: int, vocab_size: int) -> int:
    return int.from_bytes(blake2b(state + seed.to_bytes(8, "little"), digest_size=8).digest(), "little") % vocab_size


def expected_tokens(prompt_ids: Sequence[int], seed: int, num_tokens: int, vocab_size: int) -> list[int]:
    """What a sequence must generate, computed without any engine."""
    state = START
    for token_id in prompt_ids:
        state = chain(state, token_id)
    out: list[int] = []
    for _ in range(num_tokens):
        out.append(next_token(state, seed, vocab_size))
        state = chain(state, out[-1])
    return out


class HashingExecutor:
    """KV of a token = hash of the KV before it and of the token; the sampled token = hash of the last KV and the seed.

    Every KV group holds the same values, so that windows and full groups check each other. Prompts are read as the null executor does.
    """

    def __init__(self, vocab_size: int = 256) -> None:
        self._vocab_size = vocab_size
        self._pool: dict[tuple[int, int], list[bytes]] = {}
        self._swap: dict[tuple[int, int], list[bytes]] = {}

    def run(self, batch: Batch) -> StepResult:
        for move in batch.moves:
            if move.direction == "out":
                self._swap[move.group, move.slot] = list(self._pool[move.group, move.block])
            else:
                self._pool[move.group, move.block] = list(self._swap[move.group, move.slot])
        for copy in batch.copies:
            self._pool[copy.group, copy.destination] = list(self._pool[copy.group, copy.source])
        tokens = {}
        for item in batch.items:
            (state,) = {self._write(item, group) for group in range(len(item.kv.tables))}
            if item.sample is not None:
                assert item.start + len(item.token_ids) == len(item.sample.prompt_ids) + len(item.sample.output_ids)
                for seq_id, seed in zip(item.sample.seq_ids, item.sample.seeds, strict=True):
                    tokens[seq_id] = SampledToken(token_id=next_token(state, seed, self._vocab_size))
        return replace(NullExecutor().run(batch), tokens=tokens)

    def _write(self, item: BatchItem, group: int) -> bytes:
        size, table = item.kv.block_size, item.kv.tables[group]
        state = START
        if item.start:
            state = self._pool[group, table[(item.start - 1) // size]][(item.start - 1) % size]
        for position, token_id in enumerate(item.token_ids, item.start):
            state = chain(state, token_id)
            self._pool.setdefault((group, table[position // size]), [b""] * size)[position % size] = state
        return state
