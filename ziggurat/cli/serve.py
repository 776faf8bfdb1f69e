# SPDX-License-Identifier: Apache-2.0
"""``ziggurat serve [MODEL]``: the OpenAI-compatible server, with the ledger's table at start."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ziggurat.cli.engine_flags import engine_flags
from ziggurat.cli.flags import Parser, UsageError, add_flags, build, flags_of
from ziggurat.cli.memory_table import memory_table
from ziggurat.cli.model_argument import add_model, model_of
from ziggurat.cli.progress import ProgressLine
from ziggurat.cli.sources import FLAG, source_of
from ziggurat.engine.config import EngineConfig, option
from ziggurat.errors import UnsupportedFeature
from ziggurat.server.config import ServerConfig
from ziggurat.server.console import Announce, announcer, log_to_stderr


@dataclass(frozen=True, slots=True, kw_only=True)
class RecallOptions:
    """What is served beside the model."""

    recall: Path | None = option(None, "folder of memories to serve at /v1/memories (docs/recall.md)", group="server")


def parser() -> Parser:
    """Its flags."""
    parser = Parser("ziggurat serve", "Serve a model over HTTP: OpenAI's API, a page at /, the memory map at /memory.")
    add_model(parser)
    # Taken so that they can be refused by name.
    parser.add_argument("more_models", nargs="*", help=argparse.SUPPRESS)
    add_flags(parser, engine_flags())
    add_flags(parser, flags_of(ServerConfig))
    add_flags(parser, flags_of(RecallOptions))
    return parser


def run(argv: Sequence[str]) -> int:
    """Serve until a signal; 0 after a drain, 128 + the signal's number if it was cut short.

    Raises:
        UsageError: two addresses.
        UserError: a setting, the address, the model (or more than one), or a budget that it does not fit.
    """
    namespace = parser().parse(argv)
    refuse_several(namespace)
    refuse_two_addresses(namespace)
    config = build(EngineConfig, namespace, model=model_of(namespace))
    server = build(ServerConfig, namespace)
    recall = build(RecallOptions, namespace)
    from ziggurat.server.run import run_server

    log_to_stderr(server.log_format, server.log_level)
    with contextlib.ExitStack() as stack:
        extra = {} if recall.recall is None else _memories(stack, recall.recall)
        return run_server(server, lambda: _load(config, announcer(server.log_format)), **extra)


def _memories(stack: contextlib.ExitStack, folder: Path) -> dict[str, Any]:
    """The routes of memories and where chats recall them from; by meaning too if the encoder is installed."""
    from ziggurat.recall.encoder import find_minilm, open_minilm
    from ziggurat.recall.http import Stores, make_router

    stores = Stores(folder, open_minilm() if find_minilm() is not None else None)
    stack.callback(stores.close)
    return {"routers": [make_router(stores)], "recaller": stores}


def refuse_several(namespace: argparse.Namespace) -> None:
    """One server, one model, for now.

    Raises:
        UnsupportedFeature: more were named.
    """
    if namespace.more_models:
        names = ", ".join([namespace.positional_model, *namespace.more_models])
        raise UnsupportedFeature(
            f"several models in one server are not built yet, and {names} were named; start a server for each, "
            f"with its own --port and --memory",
            feature="several_models",
        )


def refuse_two_addresses(namespace: argparse.Namespace) -> None:
    """A Unix socket stands instead of host and port.

    Raises:
        UsageError: both were typed.
    """
    typed = [name for name in ("host", "port") if source_of(namespace, name) == FLAG]
    if typed and source_of(namespace, "uds") == FLAG:
        raise UsageError(f"--uds and --{typed[0]} name two addresses; give one of them")


def _load(config: EngineConfig, announce: Announce) -> Any:
    """Load the engine and tell what computes and who owns which bytes; runs while /health already answers."""
    from ziggurat import kernels
    from ziggurat.engine.engine import Engine

    engine = Engine.load(config, progress=ProgressLine())
    facts, memory = kernels.describe(config.kernels), engine.memory()
    announce("kernels", kernels_line(facts), facts)
    announce("memory", memory_table(memory), {"ledger": memory["ledger"]})
    return engine


def kernels_line(facts: Mapping[str, str | int]) -> str:
    """Which kernels run, and why slower ones do. ``facts`` are `ziggurat.kernels.describe`'s."""
    kind = facts["backend"] if facts["backend"] == facts["isa"] else f"{facts['backend']} ({facts['isa']})"
    return f"kernels: {kind}{'; ' if facts['note'] else ''}{facts['note']}"
