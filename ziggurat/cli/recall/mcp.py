# SPDX-License-Identifier: Apache-2.0
"""``ziggurat recall mcp``: the memories of a user as an MCP server."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from ziggurat.cli.flags import Parser, add_flags, build, flags_of
from ziggurat.cli.recall.common import open_named, store_parser
from ziggurat.engine.config import option
from ziggurat.recall.mcp_server import make_mcp_server


@dataclass(frozen=True, slots=True, kw_only=True)
class McpOptions:
    """How clients reach it."""

    transport: str = option(
        "stdio",
        "stdio: the client starts this command; or clients connect",
        choices=("stdio", "streamable-http"),
        group="server",
    )
    host: str = option("127.0.0.1", "address of streamable-http", group="server")
    port: int = option(8001, "port of streamable-http; the path is /mcp", group="server")


def parser() -> Parser:
    """Its flags."""
    parser = store_parser(
        "mcp",
        "Serve the memories of --user to agents over the Model Context Protocol. Needs the extra mcp (pip install 'ziggurat[mcp]').",
    )
    add_flags(parser, flags_of(McpOptions))
    return parser


def run(argv: Sequence[str]) -> int:
    """Serve until the client leaves, or a signal.

    Raises:
        UserError: the store, or the SDK is not installed.
    """
    namespace = parser().parse(argv)
    options = build(McpOptions, namespace)
    with open_named(namespace, is_searching=True) as store:
        server = make_mcp_server(store)
        if options.transport == "stdio":
            server.run("stdio")
        else:
            print(f"listens on http://{options.host}:{options.port}/mcp", file=sys.stderr, flush=True)
            server.run("streamable-http", host=options.host, port=options.port)
    return 0
