# SPDX-License-Identifier: Apache-2.0
"""The bodies of chat and completion requests. Fields by OpenAI's names, then the extras that vLLM made common; null means "not given".

Ranges of sampling values are `SamplingParams`' business; here only types and shapes are checked.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import FailFast, Field, WithJsonSchema, field_validator, model_validator

from ziggurat.scheduling.sampling import MAX_N, MAX_TOP_LOGPROBS
from ziggurat.server.recalled import MemoryField
from ziggurat.server.structured import ResponseFormat, StructuredOutputs
from ziggurat.server.turns import ChatMessage, Strict, TemplateKwargs, Tool, ToolChoice, chosen_names

MAX_ID_LENGTH = 128
SESSION_ID = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
"""Names a file, too."""
MAX_LOGIT_BIASES = 4096
MAX_TOKEN_DIGITS = 18  # more than any vocabulary; Python refuses to read a number of thousands
DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's default of /v1/completions

# Fields whose sent form is wider than the parsed one, as /openapi.json shows them.
_TEXTS = {"type": "array", "items": {"type": "string"}}
_IDS = {"type": "array", "items": {"type": "integer"}}
Stop = Annotated[
    list[str] | None, FailFast(), WithJsonSchema({"anyOf": [{"type": "string"}, _TEXTS, {"type": "null"}]})
]
Prompts = Annotated[
    list[str | list[int]],
    FailFast(),
    WithJsonSchema({"anyOf": [{"type": "string"}, _TEXTS, _IDS, {"type": "array", "items": _IDS}]}),
]


def list_prompts(value: object) -> object:
    """One prompt, or many, as a list of prompts.

    Raises:
        ValueError: neither.
    """
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise ValueError("must be a string, a list of strings, a list of token ids or a list of lists of token ids")
    if value and all(isinstance(item, int) and not isinstance(item, bool) for item in value):
        return [value]
    is_texts = all(isinstance(item, str) for item in value)
    is_ids = all(isinstance(item, list) and all(type(token) is int for token in item) for item in value)
    if not is_texts and not is_ids:
        raise ValueError("must be a string, a list of strings, a list of token ids or a list of lists of token ids")
    return value


def check_prompts(value: list[str | list[int]]) -> list[str | list[int]]:
    """The prompts, none of them empty.

    Raises:
        ValueError: one is, or there is none, or a token id is negative.
    """
    if not value:
        raise ValueError("is empty; send at least one text or one list of token ids")
    for index, prompt in enumerate(value):
        if len(prompt) == 0:
            where = "" if len(value) == 1 else f" (number {index} of the list)"
            raise ValueError(f"is empty{where}; send at least one character or token id")
        if isinstance(prompt, list) and min(prompt) < 0:
            raise ValueError(f"token ids must be at least 0, got {min(prompt)}")
    return value


class StreamOptions(Strict):
    """``include_usage``: one more chunk with the usage; ``continuous_usage_stats``: the usage so far in every chunk (vLLM's)."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: Literal[False] | None = None


class CommonRequest(Strict):
    """What chat and completions share."""

    model: str | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    n: int | None = None
    prompt_logprobs: int | None = None
    seed: int | None = None
    stop: Stop = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    priority: int | None = None
    session_id: str | None = Field(None, pattern=SESSION_ID, max_length=MAX_ID_LENGTH)
    keep_s: float | None = Field(None, gt=0, le=604800)
    deadline_s: float | None = Field(None, gt=0, le=86400)
    request_id: str | None = Field(None, pattern=r"^[A-Za-z0-9._:/-]+$", max_length=MAX_ID_LENGTH)
    cache_salt: str | None = Field(None, min_length=1)
    skip_special_tokens: bool | None = None
    allowed_token_ids: Annotated[list[int] | None, FailFast()] = Field(None, min_length=1)
    truncate_prompt_tokens: int | None = Field(None, ge=1)
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    # The older spellings of structured_outputs.
    guided_json: str | dict[str, Any] | None = None
    guided_regex: str | None = None
    guided_choice: Annotated[list[str] | None, FailFast()] = Field(None, min_length=1)
    guided_grammar: str | None = None
    # Bookkeeping and hints that change no answer: accepted, unused.
    user: str | None = None
    store: bool | None = None
    metadata: dict[str, Any] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None

    @field_validator("stop", mode="before")
    @classmethod
    def _one_stop(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value

    @field_validator("logit_bias", mode="before")
    @classmethod
    def _few_biases(cls, value: object) -> object:
        # Before the entries are looked at: each is checked on the event loop, in about a microsecond, and added at every token.
        if isinstance(value, dict) and len(value) > MAX_LOGIT_BIASES:
            raise ValueError(
                f"{len(value)} tokens are more than the {MAX_LOGIT_BIASES} that are taken; "
                "to choose among few tokens, send allowed_token_ids"
            )
        return value

    @field_validator("logit_bias")
    @classmethod
    def _bias_keys(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        for key in value or {}:
            if not (key.isascii() and key.isdigit() and len(key) <= MAX_TOKEN_DIGITS):
                raise ValueError(f"keys are token ids written as decimal numbers, got {key[:40]!r}")
        return value

    @model_validator(mode="after")
    def _options_need_stream(self) -> CommonRequest:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is only allowed when stream is true")
        if self.prompt_logprobs is not None and self.stream:
            raise ValueError("prompt_logprobs is not available when stream is true; leave one of them out")
        return self

    @property
    def wants_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def wants_running_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.continuous_usage_stats)

    def kept(self, prompt_ids: list[int]) -> list[int]:
        """The prompt, or its end if ``truncate_prompt_tokens`` says so."""
        limit = self.truncate_prompt_tokens
        return prompt_ids if limit is None else prompt_ids[-limit:]

    @property
    def num_choices(self) -> int:
        return 1 if self.n is None else self.n

    @property
    def num_prompt_logprobs(self) -> int | None:
        """As `SamplingParams.prompt_logprobs`."""
        return self.prompt_logprobs


class ChatRequest(CommonRequest):
    """Body of POST /v1/chat/completions."""

    # One wrong turn is enough: a list of a million complaints would not fit the budget.
    messages: Annotated[list[ChatMessage], FailFast()] = Field(min_length=1)
    logprobs: bool | None = None
    top_logprobs: int | None = None
    max_completion_tokens: int | None = None
    tools: Annotated[list[Tool] | None, FailFast()] = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    include_reasoning: bool | None = None
    chat_template_kwargs: TemplateKwargs = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    memory: MemoryField | None = None

    @model_validator(mode="after")
    def _check_tools(self) -> ChatRequest:
        names = [tool.function.name for tool in self.tools or ()]
        if len(set(names)) < len(names):
            raise ValueError("tools must have different names, and two of them are the same")
        if self.tool_choice not in (None, "none", "auto") and not names:
            raise ValueError("tool_choice asks for a call and there are no tools; send them")
        for name in chosen_names(self.tool_choice):
            if name not in names:
                raise ValueError(f"tool_choice names {name!r}, which is not among the tools: {', '.join(names)}")
        if self.continue_final_message and (self.add_generation_prompt or self.messages[-1].role != "assistant"):
            raise ValueError("continue_final_message needs a last turn of the assistant and no add_generation_prompt")
        return self

    @model_validator(mode="after")
    def _check_pairs(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs is only allowed when logprobs is true")
        old, new = self.max_tokens, self.max_completion_tokens
        if old is not None and new is not None and old != new:
            raise ValueError(
                f"max_tokens {old} and max_completion_tokens {new} contradict each other; send one of them"
            )
        return self

    @property
    def output_limit(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def num_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(CommonRequest):
    """Body of POST /v1/completions. ``prompt``: text, token ids, or a list of either; always a list of prompts after parsing."""

    prompt: Prompts
    logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    echo: bool | None = None
    best_of: int | None = None
    add_special_tokens: bool | None = None

    @field_validator("prompt", mode="before")
    @classmethod
    def _many_prompts(cls, value: object) -> object:
        return list_prompts(value)

    @field_validator("prompt")
    @classmethod
    def _no_empty(cls, value: list[str | list[int]]) -> list[str | list[int]]:
        return check_prompts(value)

    @model_validator(mode="after")
    def _check_size(self) -> CompletionRequest:
        num_sequences = len(self.prompt) * self.num_sequences
        if len(self.prompt) > 1 and num_sequences > MAX_N:
            raise ValueError(
                f"one request takes at most {MAX_N} continuations (prompts times n or best_of), got {num_sequences}"
            )
        if self.stream and self.num_sequences > self.num_choices:
            raise ValueError(
                f"best_of {self.best_of} with n {self.num_choices} cannot be streamed: the best are known at the end only"
            )
        return self

    @property
    def num_sequences(self) -> int:
        """Continuations that are sampled per prompt."""
        return self.num_choices if self.best_of is None else self.best_of

    @property
    def num_prompt_logprobs(self) -> int | None:
        """What was asked for, and what echoing a prompt with its log-probabilities, or nothing but a prompt, needs."""
        echoed = [self.logprobs, 0 if self.max_tokens == 0 else None] if self.echo else []
        return max((each for each in (self.prompt_logprobs, *echoed) if each is not None), default=None)

    @property
    def output_limit(self) -> int | None:
        return DEFAULT_COMPLETION_TOKENS if self.max_tokens is None else self.max_tokens

    @property
    def num_logprobs(self) -> int | None:
        return self.logprobs
