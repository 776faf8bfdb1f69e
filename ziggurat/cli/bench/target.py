# SPDX-License-Identifier: Apache-2.0
"""What is measured: an engine in this process, or a server at an address. Both are clients of the same replay."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from ziggurat.cli.engine_flags import engine_flags
from ziggurat.cli.flags import Flag, Parser, UsageError, add_flags, build, flags_of
from ziggurat.cli.model_argument import add_model, given_model, model_of
from ziggurat.cli.sources import FLAG, source_of
from ziggurat.cli.talk import load_engine
from ziggurat.engine.client import EngineClient
from ziggurat.engine.config import EngineConfig, option
from ziggurat.engine.interface import EngineInterface
from ziggurat.workload.replay import Client

# Nobody asks by name here, and the workload's seed is the only one.
_NOT_HERE = ("served_model_name", "max_queued_requests", "seed")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """Where a running server is."""

    base_url: str | None = option(
        None, "measure the server at this address instead of an engine in this process", group="server"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Something that serves. ``max_model_len`` is None if the server does not say."""

    backend: str
    model: str
    max_model_len: int | None
    engine: EngineInterface | None
    url: str | None = None

    @property
    def vocab_size(self) -> int:
        """Made-up prompts have ids below it; a server does not say how many it has, so there only the first are used."""
        return 256 if self.engine is None else self.engine.model.vocab_size

    def client(self, run: int = 0) -> Client:
        """A client for run number ``run``: no run finds in the prefix cache what another one left there."""
        salt = f"run-{run}"
        if self.engine is not None:
            return EngineClient(self.engine, salt=salt)
        from ziggurat.workload.http_client import HTTPClient

        assert self.url is not None
        return HTTPClient(self.url, model=self.model, salt=salt)


def add_engine_flags(parser: Parser) -> None:
    """The model and the engine's flags."""
    add_model(parser)
    add_flags(parser, _flags())


def add_target_flags(parser: Parser) -> None:
    """The model, ``--base-url`` and the engine's flags."""
    add_model(parser)
    add_flags(parser, flags_of(ServerOptions))
    add_flags(parser, _flags())


def _flags() -> list[Flag]:
    return engine_flags(without=_NOT_HERE)


def engine_config(namespace: argparse.Namespace, *, num_requests: int = 1) -> EngineConfig:
    """The engine that was asked for; its queue holds the whole workload."""
    given = {flag.field: getattr(namespace, flag.field) for flag in _flags() if hasattr(namespace, flag.field)}
    settings = argparse.Namespace(**given)
    return build(EngineConfig, settings, model=model_of(namespace), max_queued_requests=max(256, num_requests))


@contextlib.contextmanager
def open_target(namespace: argparse.Namespace, *, num_requests: int) -> Iterator[Target]:
    """Connect to the server, or load the engine and close it afterwards.

    Raises:
        UsageError: engine flags next to ``--base-url``.
        UserError: the server cannot be reached, or the model cannot be loaded.
    """
    url: str | None = getattr(namespace, "base_url", None)
    if url is not None:
        given = [flag.name for flag in _flags() if source_of(namespace, flag.field) == FLAG]
        if given:
            raise UsageError(f"{given[0]} is for an engine in this process, not for --base-url")
        from ziggurat.workload.http_client import HTTPClient

        name = HTTPClient(url, model=given_model(namespace)).model
        yield Target(backend="openai", model=name, max_model_len=None, engine=None, url=url)
        return
    with contextlib.closing(load_engine(engine_config(namespace, num_requests=num_requests))) as engine:
        yield Target(
            backend="ziggurat", model=engine.model.name, max_model_len=engine.model.max_model_len, engine=engine
        )
