# SPDX-License-Identifier: Apache-2.0
"""Log probabilities in OpenAI's two shapes. A token that is half a character shows as its bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ziggurat.scheduling.protocol import SampledToken
from ziggurat.server.service import ModelText

# JSON has no minus infinity; OpenAI's own value for "so unlikely that it does not matter".
FLOOR = -9999.0


def chat_logprobs(service: ModelText, tokens: Sequence[SampledToken], num_top: int) -> dict[str, Any]:
    """``choices[].logprobs`` of chat: one entry per token with up to ``num_top`` alternatives, best first."""

    def entry(token_id: int, logprob: float | None) -> dict[str, Any]:
        raw = service.token_bytes(token_id)
        return {"token": raw.decode("utf-8", "replace"), "logprob": _finite(logprob), "bytes": list(raw)}

    content = [
        {
            **entry(token.token_id, token.logprob),
            "top_logprobs": [entry(token_id, logprob) for token_id, logprob in token.top_logprobs[:num_top]],
        }
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def prompt_logprobs(service: ModelText, tokens: Sequence[SampledToken], num_top: int) -> list[dict[str, Any] | None]:
    """vLLM's ``prompt_logprobs``: null for the first token; for each other one its own entry, then up to ``num_top`` alternatives.

    Args:
        tokens: of the prompt, without the first.
    """

    def entry(token_id: int, logprob: float | None, rank: int | None) -> dict[str, Any]:
        text = service.token_bytes(token_id).decode("utf-8", "replace")
        return {"logprob": _finite(logprob), "rank": rank, "decoded_token": text}

    entries: list[dict[str, Any] | None] = [None]
    for token in tokens:
        found = {str(token.token_id): entry(token.token_id, token.logprob, token.rank)}
        for rank, (token_id, logprob) in enumerate(token.top_logprobs[:num_top], 1):
            found.setdefault(str(token_id), entry(token_id, logprob, rank))
        entries.append(found)
    return entries


class CompletionLogprobs:
    """``choices[].logprobs`` of completions for one choice: parallel lists, with offsets into its text."""

    def __init__(self, service: ModelText, num_top: int) -> None:
        self._service = service
        self._num_top = num_top
        self._offset = 0

    def take_prompt(self, first_id: int, tokens: Sequence[SampledToken], num_characters: int) -> dict[str, Any]:
        """The lists for an echoed prompt of ``num_characters``; its first token has no log-probability.

        Special tokens that the echo does not show have names all the same; offsets stay within the echo.
        """
        lists = self.take([SampledToken(token_id=first_id), *tokens])
        lists["token_logprobs"][0] = None
        if lists["top_logprobs"]:
            lists["top_logprobs"][0] = None
        lists["text_offset"] = [min(offset, num_characters) for offset in lists["text_offset"]]
        self._offset = num_characters
        return lists

    def take(self, tokens: Sequence[SampledToken]) -> dict[str, Any]:
        """The lists for the next tokens."""
        names = [self._name(token.token_id) for token in tokens]
        offsets = []
        for name in names:
            offsets.append(self._offset)
            self._offset += len(name)
        return {
            "tokens": names,
            "token_logprobs": [_finite(token.logprob) for token in tokens],
            "top_logprobs": [self._top(token) for token in tokens] if self._num_top else None,
            "text_offset": offsets,
        }

    def _top(self, token: SampledToken) -> dict[str, float]:
        top: dict[str, float] = {}
        for token_id, logprob in token.top_logprobs[: self._num_top]:
            top.setdefault(self._name(token_id), _finite(logprob))
        top.setdefault(self._name(token.token_id), _finite(token.logprob))
        return top

    def _name(self, token_id: int) -> str:
        raw = self._service.token_bytes(token_id)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def _finite(logprob: float | None) -> float:
    return FLOOR if logprob is None else max(logprob, FLOOR)
