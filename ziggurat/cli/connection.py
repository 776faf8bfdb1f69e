# SPDX-License-Identifier: Apache-2.0
"""HTTP to a running server with the standard library: over TCP or a Unix socket, with a key, refusals as our errors."""

from __future__ import annotations

import functools
import http.client
import json
import re
import socket
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from typing import Any

from ziggurat.errors import ConfigError, RequestError, StateError

CONNECT_TIMEOUT_S = 30.0
_UNIX = "unix:"
_KEY = re.compile(r"[\x21-\x7e]+")


class Connection:
    """The server at an address; every request has a connection of its own.

    Args:
        url: ``http://HOST:PORT``, with or without a trailing ``/v1``, or ``unix:PATH``.
        api_key: sent with every request.

    Raises:
        ConfigError: the address or the key cannot be used.
    """

    def __init__(self, url: str, api_key: str | None = None) -> None:
        if not url.startswith(("http://", "https://", _UNIX)):
            raise ConfigError(
                f"--url {url!r} must begin with http://, https:// or {_UNIX}, for example http://127.0.0.1:8000"
            )
        if api_key is not None and not _KEY.fullmatch(api_key):
            raise ConfigError("--api-key must be one key of visible ASCII characters without spaces")
        self.name = url.rstrip("/").removesuffix("/v1")
        self._key = api_key
        if url.startswith(_UNIX):
            self._base = "http://localhost"
            self._opener = urllib.request.build_opener(_UnixHandler(url.removeprefix(_UNIX)))
            return
        self._base = self.name
        # A proxy of the environment cannot reach this machine's own addresses.
        host = urllib.parse.urlsplit(url).hostname or ""
        is_local = host in ("localhost", "::1") or host.startswith("127.")
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({} if is_local else None))

    def get(self, path: str) -> Any:
        """The JSON at a path.

        Raises:
            ConfigError, RequestError, StateError: see `open`; ConfigError also for an answer that is not JSON.
        """
        with self.open(path, None, CONNECT_TIMEOUT_S) as response:
            try:
                return json.load(response)
            except ValueError as error:
                raise ConfigError(f"{self.name} answers, but not with JSON; is it a server of Ziggurat?") from error

    def open(self, path: str, body: Mapping[str, Any] | None, timeout_s: float) -> http.client.HTTPResponse:
        """The answer to a GET, or to a POST if there is a body. The caller closes it.

        Raises:
            ConfigError: no server answers.
            RequestError: it refuses, in its own words; StateError: it will not yet, or no more.
        """
        headers = {"Accept": "application/json"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
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
            raise ConfigError(f"no server answers at {self.name}: {reason}; start one with `ziggurat serve`") from error
        return response


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, host: str, *, path: str, **settings: Any) -> None:
        super().__init__(host, **settings)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class _UnixHandler(urllib.request.AbstractHTTPHandler):
    """Takes ``http:`` addresses to a socket file."""

    # Before the standard handler for http.
    handler_order = 400

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path

    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        """Called by the opener."""
        return self.do_open(functools.partial(_UnixConnection, path=self._path), request)

    http_request = urllib.request.AbstractHTTPHandler.do_request_


def _refusal(error: urllib.error.HTTPError) -> Exception:
    """The server's own sentence."""
    try:
        body = json.loads(error.read())["error"]
        message, param = str(body["message"]), body.get("param")
    except (ValueError, KeyError, TypeError):
        message, param = f"HTTP {error.code} {error.reason}", None
    if error.code == 401:
        message += "; give it with --api-key"
    if error.code == 503:
        return StateError(message)
    return RequestError(message, param=param)
