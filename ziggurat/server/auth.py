# SPDX-License-Identifier: Apache-2.0
"""Who may call what: API keys for the routes that generate, an admin key for the routes that change state, everything else open.

Only digests of keys are kept, and each one is compared with every digest in constant time, so that neither the memory of the process
nor the time of an answer tells a key.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from ziggurat.errors import ConfigError
from ziggurat.server.config import ServerConfig
from ziggurat.server.errors import InvalidApiKey

# A path is guarded if it is one of these, or lies below one. Health, readiness, version, metrics, the memory map and the page stay
# open: probes and dashboards have no keys.
API_PATHS = ("/v1", "/tokenize", "/detokenize")
# Routes that change the server's state, by path; reading them (GET, HEAD) is not meant.
ADMIN_PATHS = ("/reset_prefix_cache", "/memory", "/v1/load_lora_adapter", "/v1/unload_lora_adapter")
READING = ("GET", "HEAD")
# Hexadecimal digits of a key's digest that name its holder (`sha256sum`): enough to tell clients apart, too few to test guesses against.
NAME_DIGITS = 8
_KEY = re.compile(r"[\x21-\x7e]+")


@dataclass(frozen=True, slots=True)
class Keys:
    """Digests of the keys.

    Attributes:
        api: for the API's routes; empty means that those are open.
        admin: for routes that change state; they take an API key when there is no admin key.
    """

    api: tuple[bytes, ...] = ()
    admin: tuple[bytes, ...] = ()

    def allowed(self, method: str, path: str) -> tuple[bytes, ...] | None:
        """The digests that open a route; None if it is open to all. An admin key opens the API too."""
        if method not in READING and any(_is_below(path, parent) for parent in ADMIN_PATHS):
            return self.admin or self.api or None
        if self.api and any(_is_below(path, parent) for parent in API_PATHS):
            return self.api + self.admin
        return None


def _is_below(path: str, parent: str) -> bool:
    return path == parent or path.startswith(parent + "/")


def load_keys(config: ServerConfig) -> Keys:
    """The keys of ``--api-key``, ``--api-key-file`` and ``--admin-api-key``.

    Raises:
        ConfigError: a key is malformed, or the file cannot be read or has none. No message repeats a key.
    """
    api = list(config.api_key)
    if config.api_key_file is not None:
        api += _read_keys(config.api_key_file)
    for name, keys in (("--api-key", api), ("--admin-api-key", config.admin_api_key)):
        for number, key in enumerate(keys, 1):
            if not _KEY.fullmatch(key):
                raise ConfigError(
                    f"key {number} of {name} must be visible ASCII characters without spaces, at least one; it has {len(key)} characters"
                )
    return Keys(api=_digests(api), admin=_digests(config.admin_api_key))


def _read_keys(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"cannot read --api-key-file {path}: {reason}") from None
    keys = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not keys:
        raise ConfigError(
            f"--api-key-file {path} has no key; write one per line (lines that begin with # are comments)"
        )
    return keys


def _digests(keys: Iterable[str]) -> tuple[bytes, ...]:
    return tuple(hashlib.sha256(key.encode()).digest() for key in keys)


def is_known(key: bytes, digests: Iterable[bytes]) -> bool:
    """Whether ``key`` is one of those keys; the time depends on their number alone."""
    digest = hashlib.sha256(key).digest()
    matches = [hmac.compare_digest(digest, known) for known in digests]
    return any(matches)


class Guard:
    """A layer around the app that lets only known keys through to guarded routes.

    Raises:
        InvalidApiKey: to the layer around it, which answers.
    """

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            digests = self._keys.allowed(scope["method"], scope["path"])
            if digests is not None:
                key = _check(scope, digests, is_admin=digests == self._keys.admin)
                scope.setdefault("state", {})["client"] = f"key-{hashlib.sha256(key).hexdigest()[:NAME_DIGITS]}"
        await self._app(scope, receive, send)


def _check(scope: Scope, digests: tuple[bytes, ...], *, is_admin: bool) -> bytes:
    """The key that was sent and is known."""
    given = [value for name, value in scope["headers"] if name == b"authorization"]
    wanted = "an admin key (--admin-api-key of the server)" if is_admin else "an API key"
    if not given:
        raise InvalidApiKey(f"{scope['path']} needs {wanted}: send the header 'Authorization: Bearer KEY'")
    scheme, _, key = given[0].partition(b" ")
    if scheme.lower() != b"bearer":
        raise InvalidApiKey("the Authorization header must be 'Bearer KEY'")
    if not is_known(key.strip(), digests):
        raise InvalidApiKey(f"the key that was sent is not {wanted} of this server")
    return bytes(key.strip())


def client_of(request: Request, user: str | None) -> str:
    """Whose request it is, for fairness between clients: the holder of its key, whatever ``user`` says; on a server without keys the
    body's ``user``; else "", which all share."""
    return getattr(request.state, "client", None) or user or ""
