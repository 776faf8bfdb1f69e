# SPDX-License-Identifier: Apache-2.0
"""The work that is measured: prompts, lengths, and what a second of it is worth. The same for every peer."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Generate = Callable[[Sequence[Sequence[int]], int], float]
"""Prompts (token ids, equally long), tokens to generate for each -> seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Lengths in tokens, and repeats; the defaults are those of the full run."""

    prefill_tokens: int = 512
    decode_prompt_tokens: int = 32
    decode_output_tokens: int = 64
    num_clients: int = 32
    prefix_tokens: int = 1000
    suffix_tokens: int = 32
    shared_output_tokens: int = 128
    num_repeats: int = 5

    @property
    def max_model_len(self) -> int:
        """The longest sequence, tokens, with some to spare."""
        shared = self.prefix_tokens + self.suffix_tokens + self.shared_output_tokens
        return max(shared, self.prefill_tokens, self.decode_prompt_tokens + self.decode_output_tokens) + 32

    @property
    def max_kv_tokens(self) -> int:
        """KV of all clients when the prefix is kept once, and of two prefixes that are out of use."""
        own = self.suffix_tokens + self.shared_output_tokens + 32
        return 3 * self.max_model_len + self.num_clients * own


QUICK = Lengths(decode_output_tokens=16, shared_output_tokens=8, num_repeats=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampler:
    """Prompts for one repeat of one item. Every call draws new ones, so that no cache is warm; all peers get the same."""

    lengths: Lengths
    vocab_size: int
    rng: random.Random

    def prompts(self, num_prompts: int, num_tokens: int) -> list[list[int]]:
        """Random token ids, special ones left out."""
        return [[self.rng.randrange(2, self.vocab_size) for _ in range(num_tokens)] for _ in range(num_prompts)]


def prefill(sampler: Sampler, generate: Generate) -> float | None:
    """Prompt tokens/s of one prompt, its first token included."""
    seconds = generate(sampler.prompts(1, sampler.lengths.prefill_tokens), 1)
    return _rate(sampler.lengths.prefill_tokens, seconds)


def decode(sampler: Sampler, generate: Generate, *, batch: int) -> float | None:
    """Generated tokens/s of a batch: the time of prompts and outputs minus that of other prompts, as long, with one token each."""
    lengths = sampler.lengths
    prompt_s = generate(sampler.prompts(batch, lengths.decode_prompt_tokens), 1)
    all_s = generate(sampler.prompts(batch, lengths.decode_prompt_tokens), 1 + lengths.decode_output_tokens)
    return _rate(batch * lengths.decode_output_tokens, all_s - prompt_s)


def shared_prefix(sampler: Sampler, generate: Generate) -> float | None:
    """Output tokens/s of clients that share a new prefix, prompt time included."""
    lengths = sampler.lengths
    prefix = sampler.prompts(1, lengths.prefix_tokens)[0]
    prompts = [prefix + suffix for suffix in sampler.prompts(lengths.num_clients, lengths.suffix_tokens)]
    seconds = generate(prompts, lengths.shared_output_tokens)
    return _rate(lengths.num_clients * lengths.shared_output_tokens, seconds)


def _rate(num_tokens: int, seconds: float) -> float | None:
    """None when the machine was disturbed so much that the difference of two times is not positive."""
    return num_tokens / seconds if seconds > 0 else None


Measure = Callable[[Sampler, Generate], float | None]
"""One sample of an item: tokens/s, None if it was disturbed."""
ITEMS: dict[str, Measure] = {
    "prefill_512": prefill,
    "decode_b1": lambda sampler, generate: decode(sampler, generate, batch=1),
    "decode_b8": lambda sampler, generate: decode(sampler, generate, batch=8),
    "decode_b32": lambda sampler, generate: decode(sampler, generate, batch=32),
    "shared_prefix_32x1000": shared_prefix,
}
MAX_BATCH = 32
