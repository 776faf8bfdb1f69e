# SPDX-License-Identifier: Apache-2.0
"""Who leaves when space is needed: one protocol, one registry, one file per family of policies. A new one is a module here or anywhere."""

from __future__ import annotations

from ziggurat.memory.eviction.arc import ARC
from ziggurat.memory.eviction.belady import ORACLES, Belady, Future
from ziggurat.memory.eviction.classic import FIFO, LFU, LRU, CostAware, Sieve
from ziggurat.memory.eviction.protocol import (
    EVICTION_POLICIES,
    UNKNOWN,
    CacheShape,
    Entry,
    EvictionPolicy,
    PolicyFactory,
)
from ziggurat.memory.eviction.succinct import Succinct

__all__ = [
    "ARC",
    "EVICTION_POLICIES",
    "FIFO",
    "LFU",
    "LRU",
    "ORACLES",
    "UNKNOWN",
    "Belady",
    "CacheShape",
    "CostAware",
    "Entry",
    "EvictionPolicy",
    "Future",
    "PolicyFactory",
    "Sieve",
    "Succinct",
]
