# SPDX-License-Identifier: Apache-2.0
"""A running server as somebody who answers: OpenAI's streaming API over the standard library's HTTP client."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any

from ziggurat.cli.connection import Connection
from ziggurat.cli.talk import DEFAULT_MAX_TOKENS, Message, Piece
from ziggurat.errors import ConfigError, EngineError, RequestError, StateError

# A long prompt on a slow machine says nothing for minutes before its first token.
ANSWER_TIMEOUT_S = 900.0


class RemoteTalker:
    """The server at an address.

    Args:
        url, api_key: see `Connection`.
        model: the name to ask for; the first served one if None.

    Raises:
        ConfigError: the address cannot be reached, or does not speak this API.
        RequestError: the server has no model of that name.
    """

    def __init__(self, url: str, model: str | None = None, api_key: str | None = None) -> None:
        self._connection = Connection(url, api_key)
        names = [str(card["id"]) for card in self._models()]
        if model is not None and model not in names:
            raise RequestError(f"{self._connection.name} serves {', '.join(names)}, not {model!r}", param="model")
        self.model = model or names[0]

    def complete(self, prompt: str, sampling: Mapping[str, Any]) -> Generator[Piece, None, None]:
        """See `Talker.complete`."""
        body = {"prompt": prompt, **self._body(sampling)}
        return self._pieces("/v1/completions", body, lambda choice: choice.get("text"))

    def chat(self, messages: Sequence[Message], sampling: Mapping[str, Any]) -> Generator[Piece, None, None]:
        """See `Talker.chat`."""
        body = {"messages": list(messages), **self._body(sampling)}
        return self._pieces("/v1/chat/completions", body, lambda choice: choice.get("delta", {}).get("content"))

    def memory(self) -> Mapping[str, Any]:
        """See `Talker.memory`."""
        report: Mapping[str, Any] = self._connection.get("/memory")
        return report

    def close(self) -> None:
        """Nothing is held between requests."""

    def _body(self, sampling: Mapping[str, Any]) -> dict[str, Any]:
        stream = {"stream": True, "stream_options": {"include_usage": True}}
        return {"model": self.model, "max_tokens": DEFAULT_MAX_TOKENS, **stream, **sampling}

    def _models(self) -> list[dict[str, Any]]:
        try:
            cards: list[dict[str, Any]] = self._connection.get("/v1/models")["data"]
        except (KeyError, TypeError) as error:
            name = self._connection.name
            raise ConfigError(f"{name} answers, but not like an OpenAI-compatible server") from error
        if not cards:
            raise ConfigError(f"{self._connection.name} serves no model")
        return cards

    def _pieces(
        self, path: str, body: Mapping[str, Any], text_of: Callable[[Any], str | None]
    ) -> Generator[Piece, None, None]:
        reason = "stop"
        with self._connection.open(path, body, ANSWER_TIMEOUT_S) as response:
            for event in _events(response):
                if "error" in event:
                    raise EngineError(str(event["error"].get("message", event["error"])))
                for choice in event.get("choices", ()):
                    reason = choice.get("finish_reason") or reason
                    text = text_of(choice)
                    if text:
                        yield Piece(text=text)
                usage = event.get("usage")
                if usage:
                    yield _last(reason, usage)


def _events(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    """The JSON objects of a server-sent stream, up to ``[DONE]``."""
    try:
        for raw in response:
            line = raw.decode("utf-8").strip()
            if line == "data: [DONE]":
                return
            if line.startswith("data:"):
                yield json.loads(line[len("data:") :])
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise StateError(f"the server stopped in the middle of an answer: {error}") from error
    raise StateError("the server closed the connection in the middle of an answer")


def _last(reason: str, usage: Mapping[str, Any]) -> Piece:
    details = usage.get("prompt_tokens_details") or {}
    return Piece(
        text="",
        finish_reason=reason,
        num_prompt_tokens=usage.get("prompt_tokens"),
        num_cached_tokens=details.get("cached_tokens"),
        num_output_tokens=usage.get("completion_tokens"),
    )
