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
        kv_bytes_by_state: used (held by requests), cached (reusable prefixes) and free bytes of the KV pool.
        block_size_tokens, num_blocks: of the KV pool, all groups; 0 without one.
        kv_waste_ratio: of the bytes in KV blocks that requests hold, the share that nobody will read; 0 when none are held.
    """

    bytes_by_kind: Mapping[tuple[str, str], int]
    budget_by_tier: Mapping[str, int]
    pss_bytes: int
    charged_bytes: int
    kv_bytes_by_state: Mapping[str, int]
    block_size_tokens: int
    num_blocks: int
    has_prefix_cache: bool
    kv_waste_ratio: float


def memory_view(memory: Mapping[str, Any]) -> MemoryView:
    """Sums of `Service.memory`: leases inside another lease are not counted twice."""
    held: Counter[tuple[str, str]] = Counter()
    for row in memory["ledger"]:
        if row["depth"] == 0:
            held[row["kind"], row["tier"]] += row["num_bytes"]
    states = {name: kv_bytes(memory)[f"{name}_bytes"] for name in ("used", "cached", "free")}
    used_bytes = states["used"]
    wasted_bytes = sum(group["wasted_bytes"] for group in memory["kv"])
    return MemoryView(
        bytes_by_kind=held,
        budget_by_tier=memory["limits"],
        pss_bytes=memory["process"]["pss_bytes"],
        charged_bytes=memory["process"]["charged_bytes"],
        kv_bytes_by_state=states,
        block_size_tokens=max((group["block_size_tokens"] for group in memory["kv"]), default=0),
        num_blocks=sum(group["total_blocks"] for group in memory["kv"]),
        has_prefix_cache=memory.get("prefix_cache", {}).get("is_enabled", False),
        kv_waste_ratio=wasted_bytes / used_bytes if used_bytes else 0.0,
    )


def kv_bytes(memory: Mapping[str, Any]) -> dict[str, int]:
    """``total_bytes``, ``used_bytes`` (held by requests), ``cached_bytes`` (reusable prefixes) and ``free_bytes`` over all KV groups."""
    return {
        f"{name}_bytes": sum(group[f"{name}_blocks"] * group["block_bytes"] for group in memory["kv"])
        for name in ("total", "used", "cached", "free")
    }
