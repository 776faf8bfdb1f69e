# SPDX-License-Identifier: Apache-2.0
"""A server as the client of a replay: OpenAI's streaming completions over the standard library, one thread per open request."""

from __future__ import annotations

import http.client
import json
import os
import queue
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from ziggurat.clock import Clock, WallClock
from ziggurat.errors import ConfigError
from ziggurat.workload.records import Arrival, EndReason
from ziggurat.workload.replay import Event

TIMEOUT_S = 600.0
DEFAULT_VOCAB_SIZE = 256
"""Made-up prompts use the first ids of the vocabulary, which every tokenizer has."""
_REASONS: dict[str, EndReason] = {"stop": "stop", "length": "length", "abort": "abort"}


class HTTPClient:
    """Sends greedy requests that generate exactly what the arrival asks for.

    A chunk with several tokens gives them one time. The server's ``continuous_usage_stats`` says how many there are in each chunk;
    from a server without it each chunk counts as one token.

    Args:
        url: of the server, with or without ``/v1``.
        model: the name to ask for; the server's first one if None.
        vocab_size: made-up prompts have ids below it.
        salt: requests of clients with different salts share no prefix (our own servers; others may refuse the field).

    Raises:
        ConfigError: the address is not one, or nobody answers there.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        vocab_size: int = DEFAULT_VOCAB_SIZE,
        salt: str = "",
        clock: Clock | None = None,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise ConfigError(f"the server's address {url!r} must look like http://127.0.0.1:8000")
        self._address = (parts.hostname, parts.port or 80)
        self._path = parts.path.rstrip("/").removesuffix("/v1")
        self._clock = clock or WallClock()
        self._vocab_size = vocab_size
        self._salt = salt
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.model = model or self._first_model()

    def now(self) -> float:
        """See `ziggurat.workload.replay.Client.now`."""
        return self._clock.now()

    def submit(self, arrival: Arrival, due_s: float) -> None:
        """See `ziggurat.workload.replay.Client.submit`. Refusals come as events."""
        body: dict[str, Any] = {
            "model": self.model,
            "prompt": list(arrival.prompt(self._vocab_size)),
            "max_tokens": arrival.max_new,
            "n": arrival.n,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        }
        if arrival.priority:
            body["priority"] = arrival.priority
        if self._salt:
            body["cache_salt"] = self._salt
        # A process that ends does not wait for answers.
        threading.Thread(target=self._serve, args=(arrival, body), daemon=True).start()

    def poll(self, until_s: float | None) -> list[Event]:
        """Wait for the next event, and take all that are there."""
        timeout_s = None if until_s is None else until_s - self._clock.now()
        if timeout_s is not None and timeout_s <= 0:
            return []
        try:
            events = [self._events.get(timeout=timeout_s)]
        except queue.Empty:
            return []
        while not self._events.empty():
            events.append(self._events.get())
        return events

    def _first_model(self) -> str:
        connection = self._connect()
        try:
            connection.request("GET", f"{self._path}/v1/models", headers=_headers())
            return str(json.load(connection.getresponse())["data"][0]["id"])
        except (OSError, http.client.HTTPException) as error:
            address = ":".join(map(str, self._address))
            raise ConfigError(f"no server answers at {address}: {error}; start one with `ziggurat serve`") from error
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise ConfigError(
                f"{self._address[0]}:{self._address[1]} answers, but not like an OpenAI-compatible server"
            ) from error
        finally:
            connection.close()

    def _connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(*self._address, timeout=TIMEOUT_S)

    def _serve(self, arrival: Arrival, body: dict[str, Any]) -> None:
        ended: set[int] = set()
        error = "the stream ended without a reason"
        connection = self._connect()
        try:
            connection.request("POST", f"{self._path}/v1/completions", json.dumps(body), _headers())
            response = connection.getresponse()
            if response.status != 200:
                error = _refusal(response)
            else:
                self._read(arrival, response, ended)
        except (OSError, http.client.HTTPException, ValueError, KeyError) as failure:
            error = f"{type(failure).__name__}: {failure}"
        finally:
            connection.close()
        # Nothing vanishes: a continuation without an end has failed.
        for index in set(range(arrival.n)) - ended:
            self._events.put(Event(request_id=arrival.id, t_s=self._clock.now(), index=index, end="error", error=error))

    def _read(self, arrival: Arrival, response: http.client.HTTPResponse, ended: set[int]) -> None:
        num_counted = 0
        is_admitted = False
        for chunk in _chunks(response):
            t_s = self._clock.now()
            if "error" in chunk:
                raise ValueError(chunk["error"].get("message", "the server reported an error"))
            usage = chunk.get("usage") or {}
            total = usage.get("completion_tokens")
            for choice in chunk.get("choices", ()):
                num_tokens = 1 if total is None else total - num_counted
                num_counted += num_tokens
                reason = choice.get("finish_reason")
                if reason is not None:
                    ended.add(choice["index"])
                self._events.put(
                    Event(
                        request_id=arrival.id,
                        t_s=t_s,
                        index=choice["index"],
                        num_tokens=num_tokens,
                        num_cached_tokens=None if is_admitted else _cached_tokens(usage),
                        end=None if reason is None else _REASONS.get(reason, "error"),
                    )
                )
                is_admitted = True


def _headers() -> dict[str, str]:
    key = os.environ.get("OPENAI_API_KEY")
    return {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}


def _chunks(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    for raw in response:
        line = raw.decode("utf-8").strip()
        if line == "data: [DONE]":
            return
        if line.startswith("data:"):
            yield json.loads(line[len("data:") :])


def _cached_tokens(usage: dict[str, Any]) -> int:
    return int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)


def _refusal(response: http.client.HTTPResponse) -> str:
    try:
        return str(json.load(response)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {response.status} {response.reason}"
