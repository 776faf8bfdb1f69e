# SPDX-License-Identifier: Apache-2.0
"""The flags of EngineConfig, with the names that registries know as choices."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from ziggurat.cli.flags import Flag, flags_of
from ziggurat.engine.config import EngineConfig
from ziggurat.memory.eviction import EVICTION_POLICIES
from ziggurat.scheduling.order import ORDERS
from ziggurat.scheduling.planners import PLANNERS


def engine_flags(*, without: Collection[str] = ()) -> list[Flag]:
    """All flags of an engine but those of the named fields; ``model`` is every verb's own argument."""
    flags = [flag for flag in flags_of(EngineConfig) if flag.field not in ("model", *without)]
    names = {
        "eviction_policy": EVICTION_POLICIES.names(),
        "planner": PLANNERS.names(),
        "scheduling_policy": ORDERS.names(),
    }
    return [replace(flag, choices=tuple(names[flag.field])) if flag.field in names else flag for flag in flags]
