# SPDX-License-Identifier: Apache-2.0
"""What a request asks of the sampler, checked once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from ziggurat.errors import RequestError
from ziggurat.scheduling.masks import LogitsMask

MAX_STOP_STRINGS = 16
MAX_STOP_CHARS = 4096
MAX_TOP_LOGPROBS = 20
MAX_N = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Sampling settings by vLLM's names. Values are checked when the object is made.

    Attributes:
        n: how many continuations of one prompt.
        best_of: sample this many (at least n) and keep the n whose tokens have the highest mean log-probability; None samples n.
            The engine runs and reports all of them; `LLM` and the server keep the best.
        temperature: 0 is greedy.
        top_k: keep the k most likely tokens; 0 or -1 keeps all.
        top_p: keep the smallest set whose probability reaches p.
        min_p: keep tokens at least this fraction as likely as the best.
        presence_penalty, frequency_penalty: OpenAI's, over generated tokens.
        repetition_penalty: over prompt and generated tokens; 1 is off.
        seed: makes the text reproducible, whatever else is in the batch; None draws one per request.
        max_tokens: None generates up to the context limit; 0, only with prompt_logprobs, generates nothing: the prompt is scored.
        min_tokens: no end-of-sequence or stop token before this many.
        stop: strings that end the text; left out of it unless include_stop_str_in_output.
        stop_token_ids: tokens that end the text.
        ignore_eos: go on after the end-of-sequence token.
        logit_bias: token id -> value added to its logit, -100 .. 100.
        logprobs: how many alternatives to report per token; None reports nothing, 0 the sampled token only.
        prompt_logprobs: the same for the tokens of the prompt. Such a prompt takes nothing from the prefix cache, because a cached
            token has keys and values but no logits; what it computes is cached for others.
        skip_special_tokens: leave special tokens out of the text.
        logits_mask: which tokens may come next, for structured output.

    Raises:
        RequestError: a value is out of range; ``param`` names the field.
    """

    n: int = 1
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    max_tokens: int | None = None
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int | None = None
    best_of: int | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool = True
    logits_mask: LogitsMask | None = None

    def __post_init__(self) -> None:
        stop: object = self.stop  # callers pass a single string too, in spite of the annotation
        object.__setattr__(self, "stop", (stop,) if isinstance(stop, str) else tuple(self.stop))
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))
        self._check_range("n", self.n, 1, MAX_N)
        self._check_range("temperature", self.temperature, 0, 100)
        self._check_range("top_k", self.top_k, -1, math.inf)
        self._check_range("top_p", self.top_p, 0, 1, open_low=True)
        self._check_range("min_p", self.min_p, 0, 1)
        self._check_range("presence_penalty", self.presence_penalty, -2, 2)
        self._check_range("frequency_penalty", self.frequency_penalty, -2, 2)
        self._check_range("repetition_penalty", self.repetition_penalty, 0, 100, open_low=True)
        self._check_range("min_tokens", self.min_tokens, 0, math.inf)
        if self.max_tokens is not None:
            self._check_range("max_tokens", self.max_tokens, 0 if self.prompt_logprobs is not None else 1, math.inf)
            self._check_range("min_tokens", self.min_tokens, 0, self.max_tokens)
        if self.seed is not None:
            self._check_range("seed", self.seed, -(2**63), 2**63 - 1)
        if self.logprobs is not None:
            self._check_range("logprobs", self.logprobs, 0, MAX_TOP_LOGPROBS)
        if self.prompt_logprobs is not None:
            self._check_range("prompt_logprobs", self.prompt_logprobs, 0, MAX_TOP_LOGPROBS)
        if self.best_of is not None:
            self._check_range("best_of", self.best_of, self.n, MAX_N)
        self._check_stop()
        for token_id, bias in self.logit_bias.items():
            if not -100 <= bias <= 100:
                raise RequestError(
                    f"logit_bias of token {token_id} must be between -100 and 100, got {bias}", param="logit_bias"
                )

    @property
    def num_sequences(self) -> int:
        """Continuations that are sampled: ``best_of``, or n."""
        return self.n if self.best_of is None else self.best_of

    @property
    def is_ranked(self) -> bool:
        """Whether some of the sampled continuations are to be dropped, so that every token's log-probability is needed."""
        return self.num_sequences > self.n

    def _check_stop(self) -> None:
        if len(self.stop) > MAX_STOP_STRINGS:
            raise RequestError(f"stop takes at most {MAX_STOP_STRINGS} strings, got {len(self.stop)}", param="stop")
        if any(not isinstance(text, str) or not text for text in self.stop):
            raise RequestError("stop strings must not be empty", param="stop")
        # They are kept as long as the request is, waiting ones too, and no lease counts them.
        if longest := max((len(text) for text in self.stop if len(text) > MAX_STOP_CHARS), default=0):
            raise RequestError(
                f"stop strings have at most {MAX_STOP_CHARS} characters, got one of {longest}", param="stop"
            )

    def _check_range(self, name: str, value: float, low: float, high: float, *, open_low: bool = False) -> None:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not low <= value <= high or (open_low and value == low):
            left = "above" if open_low else "at least"
            bounds = f"{left} {low}" if high == math.inf else f"{left} {low} and at most {high}"
            raise RequestError(f"{name} must be {bounds}, got {value!r}", param=name)
