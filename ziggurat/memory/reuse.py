# SPDX-License-Identifier: Apache-2.0
"""What reuse of prefixes brought, and why a prompt was not reused, or not further: the engine logs this sentence once per request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ziggurat.memory.forest import PrefixForest, PrefixNode

CACHING_OFF = "caching off"
TOO_SHORT = "prompt shorter than one block"
CALLER_LIMIT = "limited by the caller"
EVICTED = "evicted"
OTHER_SALT = "other salt"


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixCounters:
    """What prefix reuse brought since the start: tokens of all opened sequences, those found cached, blocks evicted for others."""

    query_tokens: int = 0
    hit_tokens: int = 0
    evicted_blocks: int = 0


def max_reusable_blocks(num_tokens: int, block_size: int, max_cached: int | None) -> int:
    """Whole blocks that may come from the cache: one token at least must be computed."""
    limit_tokens = num_tokens - 1 if max_cached is None else min(num_tokens - 1, max_cached)
    return max(0, limit_tokens) // block_size


def explain_miss(
    forest: PrefixForest,
    token_ids: Sequence[int],
    salt: str,
    max_blocks: int,
    path: Sequence[PrefixNode],
    num_usable: int,
) -> str | None:
    """Why ``num_usable`` blocks were reused and not more; None when ``max_blocks`` were, and that is all there could be.

    Args:
        path: the nodes that agree with the prompt, at most ``max_blocks``; some may have lost blocks that a window needs.
    """
    block_size = forest.block_size
    if len(token_ids) <= block_size:
        return TOO_SHORT
    if max_blocks == 0:
        return CALLER_LIMIT
    if num_usable == max_blocks:
        return None
    key = forest.key(token_ids, len(path))
    if num_usable < len(path) or forest.was_evicted(path[-1] if path else None, salt, key):
        return EVICTED
    if path:
        return f"nothing cached continues this prompt after {len(path) * block_size} tokens"
    if forest.has_first_block(key):
        return OTHER_SALT
    return f"no block of this prompt is cached (first {block_size} tokens differ)"
