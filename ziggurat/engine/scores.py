# SPDX-License-Identifier: Apache-2.0
"""Whose bytes the log-probabilities of prompts are: plain data of open requests, bounded before they are computed. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ziggurat.engine.types import EmbedRequest, GenerateRequest
from ziggurat.errors import QueueFull, RequestError
from ziggurat.units import format_bytes

# A Python tuple, a number and a token, here and once more in the answer that a server writes.
ENTRY_BYTES = 512
_RETRY_AFTER_S = 1


def score_bytes(request: GenerateRequest | EmbedRequest) -> int:
    """What the log-probabilities of a request's prompt take while it is open, at most."""
    num_top = request.params.prompt_logprobs
    return 0 if num_top is None else len(request.prompt_ids) * (1 + num_top) * ENTRY_BYTES


class ScoreBudget:
    """Holds the prompts that are scored at a time within ``max_bytes``."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._held: dict[str, int] = {}

    @property
    def held_bytes(self) -> int:
        """Of all open requests."""
        return sum(self._held.values())

    @contextmanager
    def holding(self, request: GenerateRequest | EmbedRequest) -> Iterator[None]:
        """Take a request's bytes; given back at once if the body fails, else by `release`.

        Raises:
            RequestError: it alone is over the limit.
            QueueFull: it has to wait for others.
        """
        num_bytes = score_bytes(request)
        if num_bytes > self.max_bytes:
            raise RequestError(
                f"prompt_logprobs of {len(request.prompt_ids)} tokens with {request.params.prompt_logprobs} alternatives take "
                f"{format_bytes(num_bytes)}, and the budget has {format_bytes(self.max_bytes)} for them: ask for fewer alternatives, "
                "send a shorter prompt, or serve with more memory",
                param="prompt_logprobs",
            )
        if num_bytes and self.held_bytes + num_bytes > self.max_bytes:
            raise QueueFull(
                f"prompts that are being scored hold {format_bytes(self.held_bytes)} of {format_bytes(self.max_bytes)} for "
                f"log-probabilities, this one takes {format_bytes(num_bytes)}: retry in {_RETRY_AFTER_S} s",
                retry_after_s=_RETRY_AFTER_S,
            )
        yield
        if num_bytes:
            self._held[request.request_id] = num_bytes

    def release(self, request_id: str) -> None:
        """The request's first continuation, which carries the log-probabilities, has ended."""
        self._held.pop(request_id, None)
