# SPDX-License-Identifier: Apache-2.0
"""Structured output: a schema, a regular expression, a choice or a grammar becomes a logits mask, through llguidance.

JSON is written compact, without any whitespace: it is the shortest form, and a small model cannot lose itself in blanks. What a
request may cost is bounded: size of the text, seconds and bytes of building (in a process of its own, `grammar_check`), work per
token (the library's limits). Compiled grammars are cached; their states are copies that share the library's tables.

Source: https://github.com/guidance-ai/llguidance (``docs/json_schema.md``, ``docs/syntax.md``).
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ziggurat.engine import grammar_check
from ziggurat.engine.closing import Closer, first_tokens
from ziggurat.engine.narrow_schema import is_costly, narrowed
from ziggurat.engine.tokenizer import Tokenizer
from ziggurat.errors import EngineError, QueueFull, RequestError, UnsupportedFeature

GrammarKind = Literal["json_schema", "regex", "choice", "grammar", "lark"]

MAX_TEXT_BYTES = 128 * 1024
MAX_CACHED = 64
MAX_CACHED_BYTES = 2 << 20
MAX_PENDING = 32
CHECK_TIMEOUT_S = 30.0  # of waiting; the seconds of computing are bounded by grammar_check itself
MAX_UNCHECKED_BYTES = 16 * 1024
# A text is closed this many tokens before it must be (less if the request has few): the next token might open something long.
MAX_SLACK_TOKENS = 24
MAX_EXIT_TOKENS = 400
RETRY_AFTER_S = 2
JSON_OPTIONS: dict[str, Any] = {
    "item_separator": ",",
    "key_separator": ":",
    "whitespace_flexible": False,
    "coerce_one_of": False,
    "lenient": False,
}
# Lower than the library's: what one token may cost is some 20 ms at worst, and tables stay below some 100 MiB.
LIMITS = {
    "initial_lexer_fuel": 300_000,
    "step_lexer_fuel": 50_000,
    "step_max_items": 20_000,
    "max_lexer_states": 20_000,
    "max_grammar_size": 500_000,
}
MAX_MESSAGE = 300
PROBED_TOKENS = 4  # the ends of a text are among the first ones


@dataclass(frozen=True, slots=True)
class GrammarSpec:
    """A language that a request asks for.

    Attributes:
        kind: ``json_schema``, ``regex`` (of the whole text), ``choice`` (JSON list of texts), ``grammar`` (Lark or GBNF), ``lark``.
        text: the schema as JSON, or the text of the others.
        param: the request field, for errors.
    """

    kind: GrammarKind
    text: str
    param: str = field(compare=False, default="structured_outputs")


def invalid(spec: GrammarSpec, why: str) -> RequestError:
    """What a request with a language that cannot be had is told."""
    return RequestError(f"{spec.param}: {why[:MAX_MESSAGE]}", param=spec.param, code="invalid_grammar")


@dataclass(frozen=True, slots=True)
class Grammar:
    """A compiled language: the library's matcher with nothing consumed, and the way out of JSON texts (None for others)."""

    root: Any
    closer: Closer | None
    num_mask_bytes: int


@dataclass(slots=True)
class _Text:
    """A text in the making: the matcher that has consumed ``tokens``. A state is a text and how many of its tokens it has seen.

    Attributes:
        num_left: tokens that may still come.
        look_again: a way out is looked for when no more than this are left.
        forced: the only tokens that can come next, in order: names and marks between values, or the way out. No mask is computed for
            them, and they are the tokens that the tokenizer would make of that text.
        is_closing: ``forced`` is the way out.
    """

    matcher: Any
    num_left: int
    look_again: int
    tokens: list[int] = field(default_factory=list)
    forced: list[int] = field(default_factory=list)
    is_closing: bool = False


class GrammarMask:
    """A `LogitsMask` of one request. A JSON text that would not end in time is closed with the last tokens that it has.

    Args:
        grammar: compiled; shared by requests and never changed.
        max_tokens: tokens that the request may generate; None leaves only the context as a bound.

    Attributes:
        failure: why the grammar could not go on, once that has happened: the request's fault, not the engine's.
    """

    def __init__(self, grammar: Grammar, spec: GrammarSpec, max_tokens: int | None, max_model_len: int) -> None:
        self._grammar = grammar
        self._max_tokens = max_tokens
        self._max_model_len = max_model_len
        self._closed_counts: set[int] = set()
        self._num_total = 0
        self.spec = spec
        self.failure: str | None = None

    def start(self, prompt_ids: Sequence[int], *, num_used: int = 0) -> Any:
        """See `LogitsMask.start`.

        Args:
            num_used: tokens that were generated already, before the language begins.
        """
        num_left = self._max_model_len - len(prompt_ids)
        if self._max_tokens is not None:
            num_left = min(num_left, self._max_tokens)
        self._num_total = num_left
        return self._new_text(num_left - num_used), 0

    def mask(self, state: Any) -> Any:
        """See `LogitsMask.mask`."""
        text, _ = self._current(state)
        if text.forced:
            return _only(text.forced[0], self._grammar.num_mask_bytes)
        bits = text.matcher.compute_bitmask()
        if why := _trouble(text.matcher, bits):
            raise self._failed(why)
        return bits

    def advance(self, state: Any, token_id: int) -> Any:
        """See `LogitsMask.advance`."""
        text, num_seen = self._current(state)
        self._consume(text, token_id)
        return text, num_seen + 1

    def _new_text(self, num_left: int) -> _Text:
        # While more than the longest way out are left, none has to be looked for.
        look_again = MAX_EXIT_TOKENS + MAX_SLACK_TOKENS if self._grammar.closer is not None else 0
        text = _Text(self._grammar.root.deep_copy(), num_left, look_again)
        self._look_ahead(text)
        return text

    def _current(self, state: tuple[_Text, int]) -> tuple[_Text, int]:
        """The state with a matcher that is where it is: its own, or, when another state has gone on with that, a new one.

        Copying the matcher for every token would cost more than what it does with one.
        """
        text, num_seen = state
        if len(text.tokens) == num_seen:
            return state
        other = self._new_text(text.num_left + len(text.tokens))
        for token_id in text.tokens[:num_seen]:
            self._consume(other, token_id)
        return other, num_seen

    def _consume(self, text: _Text, token_id: int) -> None:
        if not text.matcher.consume_token(token_id):
            raise self._failed(_trouble(text.matcher))
        text.tokens.append(token_id)
        text.num_left -= 1
        if text.forced:
            del text.forced[0]
        if not text.forced:
            self._look_ahead(text)

    def was_closed(self, num_output_tokens: int) -> bool:
        """Whether the continuation that ended with so many tokens was closed because they ran out."""
        return num_output_tokens in self._closed_counts

    def _look_ahead(self, text: _Text) -> None:
        """What has to come next in a JSON text, if there is only one way to go on, or only the way out is left."""
        if self._grammar.closer is None or text.is_closing:
            return
        if text.num_left <= text.look_again:
            self._look_for_exit(text, self._grammar.closer)
        if not text.forced:
            text.forced = text.matcher.compute_ff_tokens()

    def _look_for_exit(self, text: _Text, closer: Closer) -> None:
        """Take the way out if it has to be taken now, or say when to look again."""
        path = closer.path(text.matcher, min(text.num_left, MAX_EXIT_TOKENS))
        if path is None:  # further away than that, or there is none: to look at every token would cost too much
            text.look_again = text.num_left - max(1, text.num_left // 16)
            return
        slack = text.num_left - len(path)
        if slack <= min(MAX_SLACK_TOKENS, 2 + self._num_total // 16):
            self._closed_counts.add(self._num_total - slack)
            text.forced, text.is_closing = path, True
        else:  # one token may open much, so the look-out becomes closer as the slack shrinks
            text.look_again = text.num_left - max(1, slack // (8 if slack < 4 * MAX_SLACK_TOKENS else 2))

    def _failed(self, why: str) -> EngineError:
        self.failure = f"too complex to follow: {why}"
        return EngineError(self.failure)


def _trouble(matcher: Any, bits: bytes | None = None) -> str:
    """Why a matcher cannot go on; empty if it can."""
    if matcher.is_error():
        return str(matcher.get_error()).splitlines()[0][:MAX_MESSAGE]
    return "no token can follow" if bits is not None and bits.count(0) == len(bits) else ""


def _only(token_id: int, num_bytes: int) -> bytes:
    bits = bytearray(num_bytes)
    bits[token_id >> 3] = 1 << (token_id & 7)
    return bytes(bits)


class GrammarCompiler:
    """Compiles grammars for one tokenizer, on threads of its own, and keeps those used last.

    Args:
        vocab_size: rows of the model's output layer.
        eos_ids: tokens that end a text.
        max_model_len: tokens per sequence, prompt and output.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_ids: Sequence[int], max_model_len: int) -> None:
        self._source = tokenizer
        self._vocab_size = vocab_size
        self._eos_ids = list(eos_ids)
        self._max_model_len = max_model_len
        self._tokenizer: Any = None
        self._closer: Closer | None = None
        self._lock = threading.Lock()
        self._cache: OrderedDict[GrammarSpec, Grammar] = OrderedDict()
        self._threads = ThreadPoolExecutor(max_workers=2, thread_name_prefix="ziggurat-grammar")
        self._num_pending = 0
        self.num_compiled = 0

    async def compile(self, spec: GrammarSpec, max_tokens: int | None = None) -> GrammarMask:
        """The mask of one request that may generate ``max_tokens``; the event loop goes on meanwhile.

        Raises:
            RequestError: the language is not valid, too large, or too costly (``invalid_grammar``).
            QueueFull: too many are being compiled.
            UnsupportedFeature: llguidance is not installed.
        """
        grammar = self._cached(spec)
        if grammar is None:
            if self._num_pending >= MAX_PENDING:
                raise QueueFull(
                    f"{self._num_pending} grammars are being compiled already; try again in {RETRY_AFTER_S} s",
                    retry_after_s=RETRY_AFTER_S,
                )
            self._num_pending += 1
            try:
                grammar = await asyncio.get_running_loop().run_in_executor(self._threads, self.build, spec)
            finally:
                self._num_pending -= 1
        return GrammarMask(grammar, spec, max_tokens, self._max_model_len)

    def mask(self, spec: GrammarSpec, max_tokens: int | None = None) -> GrammarMask:
        """`compile` for callers without an event loop."""
        return GrammarMask(self.build(spec), spec, max_tokens, self._max_model_len)

    def build(self, spec: GrammarSpec) -> Grammar:
        """The compiled grammar, from the cache or new. Blocks; thread-safe. Raises as `compile`."""
        found = self._cached(spec)
        if found is not None:
            return found
        if importlib.util.find_spec("llguidance") is None:
            raise UnsupportedFeature(
                f"{spec.param} needs llguidance, which is not installed: pip install 'ziggurat[structured]'",
                feature=spec.param.split(".")[0],
            )
        num_bytes = len(spec.text.encode())
        if num_bytes > MAX_TEXT_BYTES:
            raise invalid(spec, f"{num_bytes} bytes are over the limit of {MAX_TEXT_BYTES}; make it smaller")
        grammar = self._compile(spec, library_grammar(spec))
        with self._lock:
            self.num_compiled += 1
            self._cache[spec] = grammar
            while len(self._cache) > MAX_CACHED or sum(len(each.text) for each in self._cache) > MAX_CACHED_BYTES:
                self._cache.popitem(last=False)
        return grammar

    def close(self) -> None:
        """End the threads; what is being compiled is not waited for."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _cached(self, spec: GrammarSpec) -> Grammar | None:
        with self._lock:
            if spec in self._cache:
                self._cache.move_to_end(spec)
            return self._cache.get(spec)

    def _compile(self, spec: GrammarSpec, text: str) -> Grammar:
        from llguidance import LLMatcher, LLParserLimits

        tokenizer, closer = self._library_tokenizer(spec)
        limits = LLParserLimits(verbose_errors=False, **LIMITS)  # type: ignore[arg-type]
        root = LLMatcher(tokenizer, text, limits=limits, log_level=0)
        # The first masks build tables: here, and not on the engine's thread.
        walk = root.deep_copy()
        bits = walk.compute_bitmask()
        for token_id in [each for each in first_tokens(bits, PROBED_TOKENS) if each not in self._eos_ids]:
            if not _trouble(walk, bits) and walk.consume_token(token_id):
                bits = walk.compute_bitmask()
                break
        if why := _trouble(walk, bits):
            raise invalid(spec, f"cannot be compiled: {why}")
        return Grammar(root, closer if spec.kind == "json_schema" else None, len(bits))

    def _library_tokenizer(self, spec: GrammarSpec) -> tuple[Any, Closer]:
        from llguidance import LLTokenizer

        if not self._eos_ids:
            raise invalid(spec, "this model has no end-of-sequence token, so a text could never end")
        with self._lock:
            if self._closer is None:
                self._tokenizer = LLTokenizer(
                    self._source.to_json(), n_vocab=self._vocab_size, eos_token=list(self._eos_ids)
                )
                self._closer = Closer(self._tokenizer, self._eos_ids)
            return self._tokenizer, self._closer


def library_grammar(spec: GrammarSpec) -> str:
    """The library's form of a language. What might be costly is built once in a process that may die of it.

    Raises:
        RequestError: it is not valid, or took too long or too much memory.
    """
    if spec.kind != "json_schema":
        return _checked(spec, spec.text, {})
    try:
        schema = json.loads(spec.text)  # floats and integers of any size, as the schema has them
        if isinstance(schema, dict) and "x-guidance" in schema:
            raise invalid(spec, "'x-guidance' is not a keyword that requests may set; leave it out")
        text = json.dumps(narrowed(schema))
        is_harmless = len(text) <= MAX_UNCHECKED_BYTES and not is_costly(schema)
    except RecursionError:
        raise invalid(spec, "is nested too deeply; make it flatter") from None
    except ValueError as error:
        raise invalid(spec, f"is not valid JSON: {error}") from None
    if not is_harmless:
        return _checked(spec, text, JSON_OPTIONS)
    from llguidance import LLMatcher

    try:
        return LLMatcher.grammar_from_json_schema(text, overrides=JSON_OPTIONS)  # type: ignore[arg-type]
    except ValueError as error:
        raise invalid(spec, f"cannot be compiled: {error}") from None


def _checked(spec: GrammarSpec, text: str, options: dict[str, Any]) -> str:
    request = {"kind": spec.kind, "text": text, "options": options, "limits": LIMITS}
    command = [sys.executable, "-P", str(Path(grammar_check.__file__))]
    try:
        done = subprocess.run(
            command, input=json.dumps(request), capture_output=True, text=True, timeout=CHECK_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise invalid(spec, f"could not be compiled within {CHECK_TIMEOUT_S:g} s; make it simpler") from None
    if done.returncode != 0:
        # A signal is the kernel's word about seconds or the stack; anything else is about memory.
        raise invalid(spec, f"takes too much time or memory to compile (exit code {done.returncode}); make it simpler")
    answer = json.loads(done.stdout)
    if answer["error"]:
        raise invalid(spec, f"cannot be compiled: {answer['error'].splitlines()[0]}")
    return str(answer["grammar"])
