# SPDX-License-Identifier: Apache-2.0
"""The listening socket, taken before anything slow happens: a port in use is known at once, not after the model has loaded."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path
from typing import Any

from ziggurat.errors import ConfigError
from ziggurat.server.config import ServerConfig

BACKLOG = 512


def bind_socket(config: ServerConfig) -> socket.socket:
    """A socket that listens on the configured address. The caller ends it with `close_socket`.

    Raises:
        ConfigError: the address cannot be had; names the port and the next step.
    """
    return _bind_tcp(config) if config.uds is None else _bind_unix(config.uds)


def close_socket(listener: socket.socket, config: ServerConfig) -> None:
    """Close it; a Unix socket's file goes too."""
    listener.close()
    unlink_socket(config)


def unlink_socket(config: ServerConfig) -> None:
    """Remove the file of a Unix socket."""
    if config.uds is not None:
        config.uds.unlink(missing_ok=True)


def _bind_unix(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _make_room(path)
        listener.bind(str(path))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        # The limit of the operating system has no errno of its own.
        raise ConfigError(f"cannot listen on --uds {path}: {error.strerror or error}") from None
    except BaseException:
        listener.close()
        raise
    return listener


def _make_room(path: Path) -> None:
    """Remove the socket that a dead server left.

    Raises:
        ConfigError: there is something else, or a server that lives.
    """
    if not os.path.lexists(path):
        return
    if not path.is_socket():
        raise ConfigError(f"--uds {path} exists and is no socket; choose another path or remove it")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise ConfigError(f"--uds {path} is already in use by another process; stop that one, or choose another path")


def _bind_tcp(config: ServerConfig) -> socket.socket:
    where = f"{config.host}:{config.port}"
    try:
        found = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:
        raise ConfigError(f"--host {config.host} is not an address of this machine: {error}") from None
    family, _, _, _, address = found[0]
    try:
        return _listen(family, address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"port {config.port} on {config.host} is already in use by another process; "
                f"stop that one, or choose another port with --port (0 picks a free one)"
            ) from None
        if error.errno == errno.EACCES:
            raise ConfigError(f"no permission to listen on {where}; choose a port above 1023 with --port") from None
        if error.errno == errno.EADDRNOTAVAIL:
            raise ConfigError(
                f"--host {config.host} is not an address of this machine; 127.0.0.1 serves this machine only, 0.0.0.0 every machine"
            ) from None
        raise ConfigError(f"cannot listen on {where}: {error.strerror or error}") from None


def _listen(family: int, address: tuple[Any, ...]) -> socket.socket:
    # The protocol is named because asyncio switches Nagle's algorithm off for such sockets only (socket.create_server names none):
    # with it every small answer, and every token of a stream, waits 40 ms for an acknowledgement.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def address_url(listener: socket.socket) -> str:
    """How a client reaches it; a wildcard address is shown as this machine, a Unix socket as ``unix:PATH``."""
    if listener.family == socket.AF_UNIX:
        return f"unix:{listener.getsockname()}"
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1" if host == "0.0.0.0" else "::1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
