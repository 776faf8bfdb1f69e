# SPDX-License-Identifier: Apache-2.0
"""The model argument of every verb: positional, or ``--model``; the embedded model without either."""

from __future__ import annotations

import argparse

from ziggurat.cli.flags import Flag, Parser, UsageError
from ziggurat.engine.config import EMBEDDED_MODEL

_HELP = f"model folder, org/name in the Hugging Face cache, GGUF file, or '{EMBEDDED_MODEL}'"

# So that environment and file may name the model too.
MODEL = Flag(
    field="model",
    help=_HELP,
    group="options",
    kind=str,
    is_list=False,
    takes_many=False,
    choices=None,
    default=EMBEDDED_MODEL,
)


def add_model(parser: Parser) -> None:
    """Add ``[MODEL]`` and ``--model``."""
    parser.add_argument("positional_model", metavar="MODEL", nargs="?", help=f"{_HELP} (default: {EMBEDDED_MODEL})")
    add_model_flag(parser)


def add_model_flag(parser: Parser) -> None:
    """Add ``--model`` alone, for verbs with other positional arguments."""
    parser.add_argument("--model", metavar="MODEL", default=argparse.SUPPRESS, help=f"the same as MODEL: {_HELP}")
    parser.flags["model"] = MODEL


def model_of(namespace: argparse.Namespace) -> str:
    """The model that was named, or the embedded one.

    Raises:
        UsageError: named twice, differently.
    """
    return given_model(namespace) or EMBEDDED_MODEL


def given_model(namespace: argparse.Namespace) -> str | None:
    """The model that was named, or None.

    Raises:
        UsageError: named twice, differently.
    """
    named = [getattr(namespace, name, None) for name in ("positional_model", "model")]
    given = list(dict.fromkeys(name for name in named if name is not None))
    if len(given) > 1:
        raise UsageError(f"the model is named twice: {given[0]!r} and --model {given[1]!r}")
    return given[0] if given else None
