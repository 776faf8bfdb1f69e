# SPDX-License-Identifier: Apache-2.0
"""The listening socket, taken before anything slow happens: a port in use is known at once, not after the model has loaded."""

from __future__ import annotations

import errno
import socket
from typing import Any

from ziggurat.errors import ConfigError
from ziggurat.server.config import ServerConfig

BACKLOG = 512


def bind_socket(config: ServerConfig) -> socket.socket:
    """A socket that listens on the configured address. The caller closes it.

    Raises:
        ConfigError: the address cannot be had; names the port and the next step.
    """
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
    """How a browser reaches it; a wildcard address is shown as this machine."""
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1" if host == "0.0.0.0" else "::1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
