# SPDX-License-Identifier: Apache-2.0
"""Whether a request can ever be served, decided before it is queued. What passes here can always run when it is alone."""

from __future__ import annotations

from collections.abc import Sequence

from ziggurat.errors import ContextLengthExceeded, KVCapacityExceeded, RequestError
from ziggurat.memory.kv import KVStore
from ziggurat.units import format_bytes


def fits_alone(store: KVStore, num_tokens: int) -> bool:
    """Whether a lone sequence of ``num_tokens`` computed tokens fits the whole pool."""
    return all(need <= total for need, total in zip(store.peak_blocks(num_tokens), store.total_blocks(), strict=True))


def output_limit(
    store: KVStore,
    *,
    num_prompt_tokens: int,
    max_tokens: int | None,
    max_model_len: int,
    block_bytes: Sequence[int],
) -> int:
    """How many tokens a request may generate.

    An explicit ``max_tokens`` is kept or refused, never changed; None takes what the context limit and the pool leave.
    The last token of a text is never fed back, so P prompt and M output tokens need KV for P + M - 1; with M = 0 (the prompt is
    only read) for P.

    Raises:
        RequestError: empty prompt.
        ContextLengthExceeded: prompt, or prompt and output, over the limit.
        KVCapacityExceeded: a lone sequence of this length could never fit the pool.
    """
    if num_prompt_tokens == 0:
        raise RequestError("the prompt is empty: send at least one token", param="prompt", code="empty_prompt")
    left = max_model_len - num_prompt_tokens
    wanted = 1 if max_tokens is None else max_tokens
    if left < wanted:
        raise ContextLengthExceeded(
            max_model_len=max_model_len,
            num_prompt_tokens=num_prompt_tokens,
            num_output_tokens=wanted,
            param="prompt" if left < min(1, wanted) else "max_tokens",
        )
    # The most output tokens that fit, by bisection: peak_blocks grows with the length.
    fitting, above = 0, (left if max_tokens is None else max_tokens) + 1
    while above - fitting > 1:
        middle = (fitting + above) // 2
        if fits_alone(store, num_prompt_tokens + middle - 1):
            fitting = middle
        else:
            above = middle
    if fitting < wanted or not fits_alone(store, num_prompt_tokens):
        raise _too_large(store, num_prompt_tokens, wanted, fitting, block_bytes)
    return fitting


def _too_large(
    store: KVStore, num_prompt_tokens: int, max_tokens: int, fitting: int, block_bytes: Sequence[int]
) -> KVCapacityExceeded:
    needed = _num_bytes(store.peak_blocks(num_prompt_tokens + max(max_tokens, 1) - 1), block_bytes)
    available = _num_bytes(store.total_blocks(), block_bytes)
    advice = f"lower max_tokens to {fitting}" if fitting else "shorten the prompt"
    return KVCapacityExceeded(
        f"The request needs {format_bytes(needed)} of KV cache ({needed} bytes for {num_prompt_tokens} prompt and {max_tokens} "
        f"output tokens), the whole pool has {format_bytes(available)} ({available} bytes): {advice}, or serve with more memory.",
        needed_bytes=needed,
        available_bytes=available,
    )


def _num_bytes(blocks: Sequence[int], block_bytes: Sequence[int]) -> int:
    return sum(count * size for count, size in zip(blocks, block_bytes, strict=True))
