# SPDX-License-Identifier: Apache-2.0
"""A service without a model: deterministic words, real queueing and cancelling, and a memory map. For tests of the server."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from tests.fake_budget import FakeBudget
from ziggurat.engine.chat_template import TemplateOptions
from ziggurat.engine.families import Family, Thoughts
from ziggurat.engine.grammar import GrammarSpec
from ziggurat.engine.types import AnyRequest, EmbedRequest, FinishReason, GenerateOutput, GenerateRequest
from ziggurat.errors import (
    ContextLengthExceeded,
    Draining,
    EngineError,
    KVCapacityExceeded,
    QueueFull,
    RequestError,
)
from ziggurat.scheduling.protocol import SampledToken
from ziggurat.scheduling.sampling import SamplingParams
from ziggurat.server.service import ServiceStats

WORDS = ("the", "ziggurat", "rises", "in", "steps", "each", "one", "of", "brick", "and", "memory", "é", "日本", "🙂")
FIRST_WORD_ID = 256
KV_BYTES_PER_TOKEN = 1024
EOS_AFTER = 24
BOS_ID = 1
BLOCK_TOKENS = 16
MIB = 1 << 20
STARTED_S = time.monotonic()


class AnyMask:
    """Allows everything."""

    def start(self, prompt_ids: Sequence[int]) -> None:
        return None

    def mask(self, state: None) -> None:
        return None

    def advance(self, state: None, token_id: int) -> None:
        return None


class FakeService(FakeBudget):
    """Bytes are tokens 0..255, words are tokens from 256. Continuation ``i`` of a prompt of ``p`` tokens says word (p + i + step).

    Args:
        step_s: time per token.
        max_running, max_waiting: beyond them requests wait, then get QueueFull.
        script: (attribute) pieces of text that every continuation says instead of words, one per token.
        is_holding_text: every second token brings the text of two, as incomplete characters do.
    """

    def __init__(
        self,
        *,
        step_s: float = 0.0,
        max_running: int = 64,
        max_waiting: int = 64,
        max_model_len: int = 256,
        kv_tokens: int = 4096,
        default_sampling: Mapping[str, Any] | None = None,
        is_holding_text: bool = False,
    ) -> None:
        self.model_names: Sequence[str] = ("fake-1", "fake")
        self.max_model_len = max_model_len
        self.vocab_size = FIRST_WORD_ID + 10 * len(WORDS)
        self.default_sampling: Mapping[str, Any] = default_sampling or {}
        self.requests: list[GenerateRequest] = []
        self.template_options: list[TemplateOptions] = []
        self.has_bos = False
        self.family = Family()
        self.script: list[str] | None = None
        self.specs: list[tuple[GrammarSpec, int | None, Thoughts]] = []
        self.aborted: list[str] = []
        self.running: dict[str, int] = {}
        self.since_s: dict[str, float] = {}
        self.queue_s: dict[str, float] = {}
        self.broken: str | None = None
        self.is_closed = False
        self.fail_after: int | None = None
        self._step_s = step_s
        self._max_waiting = max_waiting
        self._is_holding_text = is_holding_text
        self._slots = asyncio.Semaphore(max_running)
        self._num_waiting = 0
        self._kv_tokens = kv_tokens
        self._prefixes: set[tuple[int, ...]] = set()
        self._is_draining = False
        self._gives_up = False

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [*([BOS_ID] if add_special_tokens and self.has_bos else []), *text.encode()]

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        if skip_special_tokens:
            token_ids = [token_id for token_id in token_ids if token_id != BOS_ID]
        return b"".join(self.token_bytes(token_id) for token_id in token_ids).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        if token_id < FIRST_WORD_ID:
            return bytes([token_id])
        return (" " + WORDS[(token_id - FIRST_WORD_ID) % len(WORDS)]).encode()

    def encode_chat(self, messages: Sequence[Mapping[str, Any]], options: TemplateOptions) -> list[int]:
        self.template_options.append(options)
        if messages[0]["role"] == "assistant":
            raise RequestError("the conversation must begin with a user or system turn", param="messages")
        text = "".join(f"<{turn['role']}>{turn['content']}" for turn in messages)
        return self.encode(text + "<assistant>" * options.add_generation_prompt, add_special_tokens=False)

    async def start(self, request: AnyRequest) -> AsyncIterator[GenerateOutput]:
        if self.broken is not None:
            raise EngineError(self.broken)
        if self._is_draining:
            raise Draining("draining")
        num_prompt = len(request.prompt_ids)
        num_output = 1 if request.params.max_tokens is None else request.params.max_tokens
        if num_prompt + num_output > self.max_model_len:
            raise ContextLengthExceeded(
                max_model_len=self.max_model_len,
                num_prompt_tokens=num_prompt,
                num_output_tokens=num_output,
                param="messages",
            )
        if num_prompt + num_output > self._kv_tokens:
            needed_bytes = (num_prompt + num_output) * KV_BYTES_PER_TOKEN
            available_bytes = self._kv_tokens * KV_BYTES_PER_TOKEN
            raise KVCapacityExceeded(
                f"needs {needed_bytes} bytes of KV cache, {available_bytes} available; shorten it",
                needed_bytes=needed_bytes,
                available_bytes=available_bytes,
            )
        if self._slots.locked() and self._num_waiting >= self._max_waiting:
            raise QueueFull(f"{self._num_waiting} requests are waiting already; try again in 3 s", retry_after_s=3)
        self.requests.append(request)  # type: ignore[arg-type]
        return self._run(request)

    async def _run(self, request: AnyRequest) -> AsyncIterator[GenerateOutput]:
        is_done = False
        self._num_waiting += 1
        arrived_s = time.monotonic()
        try:
            await self._slots.acquire()
        except BaseException:
            self.aborted.append(request.request_id)
            raise
        finally:
            self._num_waiting -= 1
        self.queue_s[request.request_id] = time.monotonic() - arrived_s
        self.since_s[request.request_id] = time.monotonic()
        try:
            outputs = self._embedded(request) if isinstance(request, EmbedRequest) else self._words(request)
            async for output in outputs:
                yield output
            is_done = True
        finally:
            self._slots.release()
            self.running.pop(request.request_id, None)
            del self.since_s[request.request_id]
            if not is_done:
                self.aborted.append(request.request_id)

    async def _embedded(self, request: EmbedRequest) -> AsyncIterator[GenerateOutput]:
        """Number of tokens, first token, 1 if normalized."""
        await asyncio.sleep(self._step_s)
        yield GenerateOutput(
            request_id=request.request_id,
            index=0,
            text="",
            tokens=(),
            finish_reason="stop" if self.fail_after is None else "error",
            stop_reason=None,
            num_prompt_tokens=len(request.prompt_ids),
            num_cached_tokens=0,
            num_output_tokens=0,
            error=None if self.fail_after is None else "the fake engine was told to fail",
            embedding=(float(len(request.prompt_ids)), float(request.prompt_ids[0]), float(request.normalize))
            if self.fail_after is None
            else None,
        )

    async def compile_grammar(self, spec: GrammarSpec, max_tokens: int | None, thoughts: Thoughts) -> AnyMask:
        self.specs.append((spec, max_tokens, thoughts))
        return AnyMask()

    async def reset_prefix_cache(self) -> int:
        num_blocks = len(self._prefixes)
        self._prefixes.clear()
        return num_blocks

    async def _words(self, request: GenerateRequest) -> AsyncIterator[GenerateOutput]:
        num_prompt, params = len(request.prompt_ids), request.params
        num_cached = self._match(request.prompt_ids)
        room = self.max_model_len - num_prompt
        limit = room if params.max_tokens is None else min(params.max_tokens, room)
        ends = dict.fromkeys(range(params.num_sequences), False)
        texts = dict.fromkeys(ends, "")
        held = dict.fromkeys(ends, "")
        self.running[request.request_id] = num_prompt
        scored = self._scored(request)
        for index in ends if limit == 0 else ():
            yield GenerateOutput(
                request_id=request.request_id,
                index=index,
                text="",
                tokens=(),
                finish_reason="length",
                stop_reason=None,
                num_prompt_tokens=num_prompt,
                num_cached_tokens=0,
                num_output_tokens=0,
                prompt_logprobs=scored if index == 0 else (),
            )
        for step in range(limit):
            await asyncio.sleep(self._step_s)
            self.running[request.request_id] = num_prompt + (step + 1) * params.num_sequences
            for index in [index for index, is_over in ends.items() if not is_over]:
                if self.broken is None and self.fail_after is not None and step >= self.fail_after:
                    self.broken = "the fake engine was told to fail"
                token_id = FIRST_WORD_ID + (num_prompt + index + step) % len(WORDS)
                text, reason, stop = self._next(params, texts[index], token_id, step, limit)
                texts[index] += text
                ends[index] = reason is not None
                if self._is_holding_text:
                    is_held = step % 2 == 0 and reason is None
                    text, held[index] = ("", held[index] + text) if is_held else (held[index] + text, "")
                if self.broken is not None or self._gives_up:
                    reason, ends[index] = "abort" if self.broken is None else "error", True
                yield GenerateOutput(
                    request_id=request.request_id,
                    index=index,
                    text=text,
                    tokens=(self._sampled(token_id, params, index),),
                    finish_reason=reason,
                    stop_reason=stop,
                    num_prompt_tokens=num_prompt,
                    num_cached_tokens=num_cached,
                    num_output_tokens=step + 1,
                    error=self.broken,
                    queue_s=self.queue_s[request.request_id],
                    prompt_logprobs=scored if (index, step) == (0, 0) else (),
                )
            if all(ends.values()):
                return

    def _next(
        self, params: Any, so_far: str, token_id: int, step: int, limit: int
    ) -> tuple[str, FinishReason | None, str | int | None]:
        text = self.token_bytes(token_id).decode("utf-8", "replace")
        if self.script is not None:
            is_over = step + 1 >= len(self.script)
            return self.script[step], "stop" if is_over else "length" if step + 1 == limit else None, None
        for stop in params.stop:
            if stop in so_far + text:
                end = (so_far + text).index(stop) + (len(stop) if params.include_stop_str_in_output else 0)
                return (so_far + text)[len(so_far) : end], "stop", stop
        if token_id in params.stop_token_ids:
            return "", "stop", token_id
        if step + 1 == limit:
            return text, "length", None
        if step + 1 == EOS_AFTER and not params.ignore_eos:
            return text, "stop", None
        return text, None, None

    def _scored(self, request: GenerateRequest) -> tuple[SampledToken, ...]:
        """Each token of a prompt is the second best, behind token 97; the third is token 98."""
        num_top = request.params.prompt_logprobs
        if num_top is None:
            return ()
        top = ((97, -1.0), (-1, -2.0), (98, -3.0))
        return tuple(
            SampledToken(
                token_id=token_id,
                logprob=-2.0,
                top_logprobs=tuple((token_id if other < 0 else other, value) for other, value in top[:num_top]),
                rank=2,
            )
            for token_id in request.prompt_ids[1:]
        )

    def _sampled(self, token_id: int, params: SamplingParams, index: int) -> SampledToken:
        """With ``best_of`` later continuations are better."""
        num_top = params.logprobs
        if params.is_ranked:
            return SampledToken(token_id=token_id, logprob=math.log(0.5) / (1 + index))
        if num_top is None:
            return SampledToken(token_id=token_id)
        others = [FIRST_WORD_ID + (token_id + offset) % len(WORDS) for offset in range(num_top)]
        top = tuple((other, math.log(0.5) * (rank + 1)) for rank, other in enumerate(others))
        return SampledToken(token_id=token_id, logprob=math.log(0.5), top_logprobs=top)

    def _match(self, prompt_ids: Sequence[int]) -> int:
        blocks = [tuple(prompt_ids[:end]) for end in range(16, len(prompt_ids), 16)]
        cached = max((len(block) for block in blocks if block in self._prefixes), default=0)
        self._prefixes.update(blocks)
        return cached

    async def stats(self) -> ServiceStats:
        return ServiceStats(
            num_running=len(self.running),
            num_waiting=self._num_waiting,
            kv_usage_ratio=sum(self.running.values()) / self._kv_tokens,
        )

    def _cached_blocks(self) -> int:
        return min(len(self._prefixes), (self._kv_tokens - sum(self.running.values())) // BLOCK_TOKENS)

    async def memory(self) -> dict[str, Any]:
        """The shape of `ziggurat.engine.report.memory_report`."""
        num_blocks, num_cached = self._kv_tokens // BLOCK_TOKENS, self._cached_blocks()
        num_used = sum(-(-tokens // BLOCK_TOKENS) for tokens in self.running.values())
        block_bytes = BLOCK_TOKENS * KV_BYTES_PER_TOKEN
        top = [
            _row("weights", "model", 15 * MIB, 0, "packed weights, bf16"),
            _row("workspace", "executor", 3 * MIB, 0, "activations of one step"),
            _row("kv", "pool", num_blocks * block_bytes, 0, "what the budget leaves"),
        ]
        rest_bytes = 64 * MIB - sum(row["num_bytes"] for row in top)
        outside = [
            _row("reserve", "planner", rest_bytes, 0, "kept free"),
            _row("baseline", "process", 48 * MIB, 0, "imports, thread pools and one warm-up step", tier="baseline"),
        ]
        inside = [_row("kv", name, tokens * KV_BYTES_PER_TOKEN, 1, "running") for name, tokens in self.running.items()]
        inside.append(_row("kv", "prefix cache", num_cached * block_bytes, 1, "beginnings that may come back"))
        group = {
            "group": 0,
            "block_size_tokens": BLOCK_TOKENS,
            "block_bytes": block_bytes,
            "total_blocks": num_blocks,
            "used_blocks": num_used,
            "cached_blocks": num_cached,
            "free_blocks": num_blocks - num_used - num_cached,
            "wasted_bytes": num_used * block_bytes - sum(self.running.values()) * KV_BYTES_PER_TOKEN,
        }
        return {
            "now_s": time.monotonic(),
            "limits": {"ram": 64 * MIB},
            "baseline_bytes": 48 * MIB,
            "process": {
                "pss_bytes": 73 * MIB,
                "rss_bytes": 80 * MIB,
                "charged_bytes": 75 * MIB,
                "above_baseline_bytes": 27 * MIB,
                "has_pss": True,
            },
            "ledger": top + inside + outside,
            "kv": [group],
            "sequences": [self._sequence(name, tokens) for name, tokens in self.running.items()],
        }

    def _sequence(self, name: str, tokens: int) -> dict[str, Any]:
        request = next(request for request in self.requests if request.request_id == name)
        num_prompt = len(request.prompt_ids)
        return {
            "seq_id": name,
            "request_id": name,
            "state": "running",
            "since_s": self.since_s[name],
            "num_prompt_tokens": num_prompt,
            "num_output_tokens": tokens - num_prompt,
            "num_cached_tokens": 0,
            "own_bytes": -(-tokens // BLOCK_TOKENS) * BLOCK_TOKENS * KV_BYTES_PER_TOKEN,
        }

    def failure(self) -> str | None:
        return self.broken

    async def drain(self, timeout_s: float) -> bool:
        self._is_draining = True
        deadline_s = time.monotonic() + timeout_s
        while self.running or self._num_waiting:
            if time.monotonic() >= deadline_s:
                self._gives_up = True
            await asyncio.sleep(0.01)
        return not self._gives_up

    async def close(self) -> None:
        self.is_closed = True


def _row(kind: str, owner: str, num_bytes: int, depth: int, why: str, tier: str = "ram") -> dict[str, Any]:
    return {
        "kind": kind,
        "owner": owner,
        "tier": tier,
        "num_bytes": num_bytes,
        "peak_bytes": num_bytes,
        "since_s": STARTED_S,
        "why": why,
        "depth": depth,
    }
