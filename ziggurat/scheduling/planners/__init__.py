# SPDX-License-Identifier: Apache-2.0
"""Batch planners, one per file, filed by decorator: a new planner touches its own file and its test only."""

from __future__ import annotations

import importlib
import pkgutil

from ziggurat.scheduling.planners.registry import PLANNERS
from ziggurat.scheduling.protocol import BatchPlanner

for _module in pkgutil.iter_modules(__path__, f"{__name__}."):
    importlib.import_module(_module.name)


def resolve(name: str) -> BatchPlanner:
    """The planner of that name.

    Raises:
        ConfigError: unknown name; says the nearest one and lists all.
    """
    return PLANNERS.get(name)()


__all__ = ["PLANNERS", "resolve"]
