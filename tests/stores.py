# SPDX-License-Identifier: Apache-2.0
"""Small paged KV stores for tests of those who use one."""

from __future__ import annotations

from ziggurat.memory.paged import PagedKVStore
from ziggurat.programs.program import KVGroup


def small_store(
    num_blocks: int, *, window: tuple[int, int] | None = None, max_chunk_tokens: int | None = None
) -> PagedKVStore:
    """Blocks of 4 tokens: a full group of ``num_blocks`` and, if wanted, a second one of (window in tokens, blocks)."""
    groups = [(None, num_blocks), *([window] if window else [])]
    return PagedKVStore(
        [
            KVGroup(index=index, layers=(index,), num_kv_heads=1, head_dim=1, window=tokens)
            for index, (tokens, _) in enumerate(groups)
        ],
        [blocks for _, blocks in groups],
        4,
        lease=None,
        block_bytes=(1000,) * len(groups),
        max_chunk_tokens=max_chunk_tokens,
    )
