# SPDX-License-Identifier: Apache-2.0
"""The few sums that metrics and the console take from the engine's memory map; the page reads the whole map."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryView:
    """Sums over a memory map.

    Attributes:
        bytes_by_kind: (kind, tier) -> bytes of top-level leases.
        budget_by_tier: tier -> limit in bytes.
        kv_waste_ratio: of the bytes in KV blocks that requests hold, the share that nobody will read; 0 when none are held.
    """

    bytes_by_kind: Mapping[tuple[str, str], int]
    budget_by_tier: Mapping[str, int]
    pss_bytes: int
    kv_waste_ratio: float


def memory_view(memory: Mapping[str, Any]) -> MemoryView:
    """Sums of `Service.memory`: leases inside another lease are not counted twice."""
    held: Counter[tuple[str, str]] = Counter()
    for row in memory["ledger"]:
        if row["depth"] == 0:
            held[row["kind"], row["tier"]] += row["num_bytes"]
    used_bytes = kv_bytes(memory)["used_bytes"]
    wasted_bytes = sum(group["wasted_bytes"] for group in memory["kv"])
    return MemoryView(
        bytes_by_kind=held,
        budget_by_tier=memory["limits"],
        pss_bytes=memory["process"]["pss_bytes"],
        kv_waste_ratio=wasted_bytes / used_bytes if used_bytes else 0.0,
    )


def kv_bytes(memory: Mapping[str, Any]) -> dict[str, int]:
    """``total_bytes``, ``used_bytes`` (held by requests), ``cached_bytes`` (reusable prefixes) and ``free_bytes`` over all KV groups."""
    return {
        f"{name}_bytes": sum(group[f"{name}_blocks"] * group["block_bytes"] for group in memory["kv"])
        for name in ("total", "used", "cached", "free")
    }
