# SPDX-License-Identifier: Apache-2.0
"""What a request may not ask of this model and this engine's policies."""

from __future__ import annotations

from collections.abc import Iterable

from ziggurat.engine.types import AnyRequest
from ziggurat.errors import RequestError
from ziggurat.scheduling.order import check_wishes


def check_request(request: AnyRequest, vocab_size: int, scheduling_policy: str) -> None:
    """
    Raises:
        RequestError: a token that the model does not have, or a wish that the scheduling policy would not look at.
    """
    check_wishes(request, scheduling_policy)
    params = request.params
    _check_range(request.prompt_ids, vocab_size, "prompt", "prompt token")
    _check_range(params.logit_bias, vocab_size, "logit_bias", "logit_bias token")
    _check_range(params.stop_token_ids, vocab_size, "stop_token_ids", "stop token")


def _check_range(token_ids: Iterable[int], vocab_size: int, param: str, what: str) -> None:
    for token_id in token_ids:
        if isinstance(token_id, bool) or not isinstance(token_id, int) or not 0 <= token_id < vocab_size:
            raise RequestError(f"{what} {token_id!r} is not in the vocabulary (ids 0 to {vocab_size - 1})", param=param)
