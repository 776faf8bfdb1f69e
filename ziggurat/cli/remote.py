# SPDX-License-Identifier: Apache-2.0
"""A running server as somebody who answers: OpenAI's streaming API over the standard library's HTTP client."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any

from ziggurat.cli.talk import DEFAULT_MAX_TOKENS, Message, Piece
from ziggurat.errors import ConfigError, EngineError, RequestError, StateError

CONNECT_TIMEOUT_S = 30.0
# A long prompt on a slow machine says nothing for minutes before its first token.
ANSWER_TIMEOUT_S = 900.0


class RemoteTalker:
    """The server at an address.

    Args:
        url: with or without a trailing ``/v1``.
        model: the name to ask for; the first served one if None.

    Raises:
        ConfigError: the address cannot be reached, or does not speak this API.
        RequestError: the server has no model of that name.
    """

    def __init__(self, url: str, model: str | None = None) -> None:
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"--url {url!r} must begin with http:// or https://, for example http://127.0.0.1:8000")
        self._base = url.rstrip("/").removesuffix("/v1")
        # A proxy of the environment cannot reach this machine's own addresses.
        host = urllib.parse.urlsplit(url).hostname or ""
        is_local = host in ("localhost", "::1") or host.startswith("127.")
        proxies = urllib.request.ProxyHandler({} if is_local else None)
        self._opener = urllib.request.build_opener(proxies)
        names = [str(card["id"]) for card in self._models()]
        if model is not None and model not in names:
            raise RequestError(f"{self._base} serves {', '.join(names)}, not {model!r}", param="model")
        self.model = model or names[0]

    def complete(self, prompt: str, sampling: Mapping[str, Any]) -> Generator[Piece, None, None]:
        """See `Talker.complete`."""
        body = {"prompt": prompt, **self._body(sampling)}
        return self._pieces("/v1/completions", body, lambda choice: choice.get("text"))

    def chat(self, messages: Sequence[Message], sampling: Mapping[str, Any]) -> Generator[Piece, None, None]:
        """See `Talker.chat`."""
        body = {"messages": list(messages), **self._body(sampling)}
        return self._pieces("/v1/chat/completions", body, lambda choice: choice.get("delta", {}).get("content"))

    def close(self) -> None:
        """Nothing is held between requests."""

    def _body(self, sampling: Mapping[str, Any]) -> dict[str, Any]:
        stream = {"stream": True, "stream_options": {"include_usage": True}}
        return {"model": self.model, "max_tokens": DEFAULT_MAX_TOKENS, **stream, **sampling}

    def _models(self) -> list[dict[str, Any]]:
        with self._open("/v1/models", None, CONNECT_TIMEOUT_S) as response:
            try:
                cards: list[dict[str, Any]] = json.load(response)["data"]
            except (ValueError, KeyError, TypeError) as error:
                raise ConfigError(f"{self._base} answers, but not like an OpenAI-compatible server") from error
        if not cards:
            raise ConfigError(f"{self._base} serves no model")
        return cards

    def _open(self, path: str, body: Mapping[str, Any] | None, timeout_s: float) -> http.client.HTTPResponse:
        headers = {"Accept": "application/json"}
        data = None
        if body is not None:
            headers["Content-Type"] = "application/json"
            data = json.dumps(body).encode()
        request = urllib.request.Request(self._base + path, data=data, headers=headers)
        try:
            response: http.client.HTTPResponse = self._opener.open(request, timeout=timeout_s)
        except urllib.error.HTTPError as error:
            raise _refusal(error) from error
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            raise ConfigError(
                f"no server answers at {self._base}: {reason}; start one with `ziggurat serve`"
            ) from error
        return response

    def _pieces(
        self, path: str, body: Mapping[str, Any], text_of: Callable[[Any], str | None]
    ) -> Generator[Piece, None, None]:
        reason = "stop"
        with self._open(path, body, ANSWER_TIMEOUT_S) as response:
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


def _refusal(error: urllib.error.HTTPError) -> Exception:
    """The server's own sentence."""
    try:
        body = json.loads(error.read())["error"]
        message, param = str(body["message"]), body.get("param")
    except (ValueError, KeyError, TypeError):
        message, param = f"HTTP {error.code} {error.reason}", None
    if error.code == 503:
        return StateError(message)
    return RequestError(message, param=param)
