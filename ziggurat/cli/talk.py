# SPDX-License-Identifier: Apache-2.0
"""Text for a prompt or a conversation, from an engine in this process or from a running server: what ``chat`` and ``complete`` share."""

from __future__ import annotations

import argparse
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from ziggurat.cli.engine_flags import engine_flags
from ziggurat.cli.flags import Parser, UsageError, add_flags, build, flags_of
from ziggurat.cli.interrupt import defer_interrupts
from ziggurat.cli.progress import ProgressLine
from ziggurat.cli.sources import FLAG, source_of
from ziggurat.engine.chat_template import missing_template
from ziggurat.engine.config import EngineConfig, option
from ziggurat.engine.interface import EngineInterface
from ziggurat.engine.types import GenerateOutput, GenerateRequest
from ziggurat.errors import EngineError, RequestError
from ziggurat.scheduling.sampling import SamplingParams

Message = dict[str, str]

SAMPLING = {
    "max_tokens": "tokens to generate at most (default 256)",
    "temperature": "0 always takes the most likely token (default: the model's, else 1)",
    "top_k": "keep the k most likely tokens; 0 keeps all",
    "top_p": "keep the most likely tokens that together reach this probability",
    "min_p": "keep tokens at least this fraction as likely as the best",
    "presence_penalty": "lower tokens that were generated before",
    "frequency_penalty": "lower tokens by how often they were generated before",
    "repetition_penalty": "lower tokens of prompt and output; 1 is off",
    "seed": "same seed, same text",
    "stop": "end before this text; may be given several times",
}
DEFAULT_MAX_TOKENS = 256
# One conversation at a time in one process: no queue to bound, no name to serve under, and --seed is the request's.
_NOT_HERE = ("served_model_name", "max_queued_requests", "seed")


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteOptions:
    """Where a running server is."""

    url: str | None = option(None, "talk to the server at this address instead of loading a model", group="server")
    api_key: str | None = option(None, "key for that server", group="server", is_secret=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A part of an answer. The last one has the reason why it ended, and the counts as far as they are known."""

    text: str
    finish_reason: str | None = None
    num_prompt_tokens: int | None = None
    num_cached_tokens: int | None = None
    num_output_tokens: int | None = None


class Talker(Protocol):
    """Somebody who answers. ``close`` gives everything back."""

    model: str

    def complete(self, prompt: str, sampling: Mapping[str, Any]) -> Generator[Piece, None, None]:
        """Continue a text. Closing the generator early ends the request."""
        ...

    def chat(self, messages: Sequence[Message], sampling: Mapping[str, Any]) -> Generator[Piece, None, None]:
        """The assistant's next turn. Closing the generator early ends the request."""
        ...

    def memory(self) -> Mapping[str, Any]:
        """Who owns which bytes: `ziggurat.engine.report.memory_report`."""
        ...

    def close(self) -> None:
        """Give everything back."""
        ...


def add_talk_flags(parser: Parser) -> None:
    """Add sampling, server and engine flags."""
    # Defaults are the model's (generation_config.json), so none is shown.
    sampling = [replace(flag, group="sampling", default=None) for flag in flags_of(SamplingParams, only=SAMPLING)]
    add_flags(parser, sampling)
    add_flags(parser, flags_of(RemoteOptions))
    add_flags(parser, engine_flags(without=_NOT_HERE))


def sampling_of(namespace: argparse.Namespace) -> dict[str, Any]:
    """The sampling settings that were given.

    Raises:
        RequestError: one is out of range.
    """
    given = {name: getattr(namespace, name) for name in SAMPLING if hasattr(namespace, name)}
    SamplingParams(**given)
    return given


def open_talker(namespace: argparse.Namespace, model: str | None) -> Talker:
    """The server at ``--url``, or an engine with the model and the engine flags.

    Raises:
        UsageError: engine flags next to ``--url``, or a key without it.
        UserError: the server cannot be reached, or the model cannot be loaded.
    """
    remote = build(RemoteOptions, namespace)
    given = {flag.field: flag.name for flag in engine_flags(without=_NOT_HERE)}
    settings = {name: getattr(namespace, name) for name in given if hasattr(namespace, name)}
    if remote.url is not None:
        from ziggurat.cli.remote import RemoteTalker

        # Settings of the environment or of a file are for those commands that load a model.
        typed = [name for name in settings if source_of(namespace, name) == FLAG]
        if typed:
            raise UsageError(f"{given[typed[0]]} is for a model in this process, not for --url")
        return RemoteTalker(remote.url, model, remote.api_key)
    if source_of(namespace, "api_key") == FLAG:
        raise UsageError("--api-key is for the server of --url, and none is given")
    config = build(EngineConfig, argparse.Namespace(**settings), **({} if model is None else {"model": model}))
    return LocalTalker(load_engine(config))


def load_engine(config: EngineConfig) -> EngineInterface:
    """The real engine; loads torch."""
    from ziggurat.engine.engine import Engine

    return Engine.load(config, progress=ProgressLine())


class LocalTalker:
    """An engine in this process, stepped by whoever reads the answer. Owns the engine."""

    def __init__(self, engine: EngineInterface) -> None:
        self._engine = engine
        self._num_requests = 0
        self.model = engine.model.name

    def complete(self, prompt: str, sampling: Mapping[str, Any]) -> Generator[Piece, None, None]:
        """See `Talker.complete`."""
        return self._run(self._encode(prompt, add_special_tokens=True), sampling)

    def chat(self, messages: Sequence[Message], sampling: Mapping[str, Any]) -> Generator[Piece, None, None]:
        """See `Talker.chat`.

        Raises:
            RequestError: the model has no chat template, or it refuses the conversation.
        """
        template = self._engine.chat_template
        if template is None:
            raise missing_template(self.model)
        return self._run(self._encode(template.render(messages), add_special_tokens=False), sampling)

    def _encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        tokenizer = self._engine.tokenizer
        if tokenizer is None:
            raise RequestError(f"the model {self.model!r} has no tokenizer.json, so it has no text")
        return tokenizer.encode(text, add_special_tokens=add_special_tokens)

    def _run(self, prompt_ids: list[int], sampling: Mapping[str, Any]) -> Generator[Piece, None, None]:
        # What nobody asked for must not make a long prompt too long.
        room = self._engine.model.max_model_len - len(prompt_ids)
        max_tokens = max(1, min(DEFAULT_MAX_TOKENS, room))
        params = SamplingParams(**{"max_tokens": max_tokens, **self._engine.model.sampling_defaults, **sampling})
        self._num_requests += 1
        request_id = f"cli-{self._num_requests}"
        self._engine.add(GenerateRequest(request_id=request_id, prompt_ids=prompt_ids, params=params))
        is_finished = False
        try:
            while not is_finished:
                for output in self._step():
                    is_finished = output.finish_reason is not None
                    yield _piece(output)
        finally:
            if not is_finished:
                self._engine.abort(request_id)
                while self._engine.has_work:
                    self._step()

    def _step(self) -> list[GenerateOutput]:
        with defer_interrupts():
            return self._engine.step()

    def memory(self) -> Mapping[str, Any]:
        """See `Talker.memory`."""
        return self._engine.memory()

    def close(self) -> None:
        """Give the engine's memory back."""
        self._engine.close()


def _piece(output: GenerateOutput) -> Piece:
    if output.finish_reason == "error":
        raise EngineError(output.error or "the engine failed")
    return Piece(
        text=output.text,
        finish_reason=output.finish_reason,
        num_prompt_tokens=output.num_prompt_tokens,
        num_cached_tokens=output.num_cached_tokens,
        num_output_tokens=output.num_output_tokens,
    )
