# SPDX-License-Identifier: Apache-2.0
"""Architectures: each one a function from a configuration to a Program. A new one is a new function in this folder."""

from __future__ import annotations

from ziggurat.errors import UnknownArchitecture
from ziggurat.programs.architectures import experts, gemma, llama
from ziggurat.programs.architectures.registry import ARCHITECTURES
from ziggurat.programs.config import RawConfig, architecture_name
from ziggurat.programs.program import Mode, Program
from ziggurat.registry import nearest

__all__ = ["ARCHITECTURES", "build_program", "experts", "gemma", "llama"]


def build_program(raw: RawConfig, mode: Mode = "serve") -> Program:
    """The Program of a parsed config.json.

    Raises:
        UnknownArchitecture: no function is registered for ``architectures[0]``.
        ModelError, UnsupportedFeature: the configuration is wrong or asks for something not built.
    """
    name = architecture_name(raw)
    if name not in ARCHITECTURES:
        known = ARCHITECTURES.names()
        hint = nearest(name, known) or "."
        raise UnknownArchitecture(f"architecture {name!r} is not supported{hint} Known: {', '.join(known)}")
    return ARCHITECTURES.get(name)(raw, mode)
