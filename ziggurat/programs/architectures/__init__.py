# SPDX-License-Identifier: Apache-2.0
"""Architectures: functions from a configuration to a Program, found by Hugging Face's class name."""

from __future__ import annotations

from collections.abc import Callable

from ziggurat.errors import UnknownArchitecture
from ziggurat.programs.config import RawConfig, architecture_name
from ziggurat.programs.program import Mode, Program
from ziggurat.registry import Registry, nearest

Architecture = Callable[[RawConfig, Mode], Program]
ARCHITECTURES: Registry[Architecture] = Registry("architecture")


def build_program(raw: RawConfig, mode: Mode = "serve") -> Program:
    """The Program of a parsed config.json.

    Raises:
        UnknownArchitecture: no function is registered for ``architectures[0]``.
        ModelError, UnsupportedFeature: the configuration is wrong or asks for something not built.
    """
    from ziggurat.programs.architectures import llama  # noqa: F401  (fills the registry)

    name = architecture_name(raw)
    if name not in ARCHITECTURES:
        known = ARCHITECTURES.names()
        raise UnknownArchitecture(
            f"architecture {name!r} is not supported{nearest(name, known) or '.'} Known: {', '.join(known)}"
        )
    return ARCHITECTURES.get(name)(raw, mode)
