# SPDX-License-Identifier: Apache-2.0
"""An engine's state as plain data, for /memory, /metrics and tables."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ziggurat.memory.ledger import RAM, SWAP
from ziggurat.memory.waste import wasted_slots

if TYPE_CHECKING:
    from ziggurat.engine.engine import Engine


def memory_report(engine: Engine) -> dict[str, Any]:
    """Who owns which bytes, why, since when.

    Keys: ``now_s`` (the clock of every ``since_s``), ``tiers`` (tier, limit, used, peak), ``limits`` (tier -> bytes),
    ``baseline_bytes``, ``planned_bytes``, ``reserve_bytes``, ``process`` (pss, rss, charged, above_baseline,
    has_pss; see `memory.machine`), ``drift`` (bytes that no lease explains, blocks per group out of circulation), ``ledger`` (rows:
    kind, owner, tier, num_bytes, peak_bytes, since_s, why, depth), ``kv`` (per group; ``wasted_bytes`` as in
    `memory.waste`), ``sequences`` (holdings of every open sequence), ``prefix_cache``, ``swap`` (slots, and tokens copied out and
    back; None without a swap space), ``streaming`` (see `LayerStream.report`; None if all
    weights stay), ``clients`` (see `Clients.rows`),
    ``adapters`` (see `AdapterPool.report`), ``sessions_kept`` (see `Sessions.report`).
    """
    resources, process = engine.resources, engine.machine.process_memory()
    ledger = resources.ledger
    tiers = [RAM] if resources.swap is None else [RAM, SWAP]
    return {
        "now_s": engine.now(),
        "tiers": [
            {
                "tier": tier,
                "limit_bytes": ledger.limit(tier),
                "used_bytes": ledger.used(tier),
                "peak_bytes": ledger.peak(tier=tier),
            }
            for tier in tiers
        ],
        "limits": {tier: ledger.limit(tier) for tier in tiers},
        "baseline_bytes": resources.baseline_bytes,
        "planned_bytes": engine.fit.planned_bytes(),
        "reserve_bytes": resources.reserve_bytes(),
        "process": {
            "pss_bytes": process.pss_bytes,
            "rss_bytes": process.rss_bytes,
            "charged_bytes": process.charged_bytes,
            "has_pss": process.has_pss,
            "above_baseline_bytes": process.charged_bytes - resources.baseline_bytes,
        },
        "drift": {"num_bytes": engine.drift.drift_bytes, "num_blocks": engine.drift.num_blocks},
        "ledger": [asdict(row) for row in ledger.rows()],
        "kv": _kv_groups(engine),
        "sequences": engine.core.snapshot()["sequences"],
        "prefix_cache": _prefix_cache(engine),
        "swap": _swap(engine),
        "streaming": None if engine.layers is None else engine.layers.report(),
        "clients": engine.core.clients.rows(),
        "adapters": engine.adapters.report(),
        "sessions_kept": engine.sessions.report(engine.now()),
    }


def _swap(engine: Engine) -> dict[str, int] | None:
    swapper = engine.core.swapper
    if swapper is None:
        return None
    stats, counters = swapper.space.stats(), engine.core.counters
    return {
        "num_slots": stats.total,
        "num_waiting_slots": stats.waiting,
        "num_running_slots": stats.running,
        "num_prefix_slots": stats.prefixes,
        "swapped_out_tokens": counters.swapped_out_tokens,
        "swapped_in_tokens": counters.swapped_in_tokens,
    }


def _kv_groups(engine: Engine) -> list[dict[str, Any]]:
    plan = engine.fit.plan
    rows = []
    wasted = wasted_slots(engine.store)
    for group, stats, pool in zip(plan.program.kv_groups(), engine.store.stats(), engine.resources.pools, strict=True):
        rows.append(
            {
                "group": group.index,
                "num_layers": len(group.layers),
                "window_tokens": None if group.is_tail else group.window,
                "is_tail": group.is_tail,
                "block_size_tokens": plan.limits.block_size,
                "block_bytes": plan.block_bytes(group),
                "total_blocks": stats.total,
                "free_blocks": stats.free,
                "cached_blocks": stats.cached,
                "used_blocks": stats.used,
                "wasted_bytes": wasted[group.index] * plan.kv_bytes_per_token(group),
                "resident_bytes": pool.resident_bytes(),
            }
        )
    return rows


def _prefix_cache(engine: Engine) -> dict[str, Any]:
    plan, counters = engine.fit.plan, engine.store.counters
    cached_bytes = sum(
        stats.cached * plan.block_bytes(group)
        for stats, group in zip(engine.store.stats(), plan.program.kv_groups(), strict=True)
    )
    return {
        "is_enabled": engine.config.enable_prefix_caching,
        "cached_bytes": cached_bytes,
        "query_tokens": counters.query_tokens,
        "hit_tokens": counters.hit_tokens,
        "evicted_blocks": counters.evicted_blocks,
    }


def _waste_ratio(engine: Engine) -> float:
    plan, held_bytes, wasted_bytes = engine.fit.plan, 0, 0
    for group, stats, slots in zip(
        plan.program.kv_groups(), engine.store.stats(), wasted_slots(engine.store), strict=True
    ):
        held_bytes += stats.used * plan.block_bytes(group)
        wasted_bytes += slots * plan.kv_bytes_per_token(group)
    return wasted_bytes / held_bytes if held_bytes else 0.0


def stats_report(engine: Engine) -> dict[str, float]:
    """Counters (``*_total``) and gauges, flat.

    ``kv_waste_ratio`` is 1 - useful / held bytes over all KV groups: held are the blocks of open sequences, useful are the entries in
    them that some sequence's next token will read (`memory.waste`). 0 when nothing is held.
    """
    counters = engine.core.counters.as_dict()
    finished = counters.pop("finished")
    stats: dict[str, float] = {f"{name}_total": float(value) for name, value in counters.items()}
    stats |= {f"finished_{reason}_total": float(count) for reason, count in finished.items()}
    stats["busy_seconds_total"] = engine.busy_s
    stats["evicted_blocks_total"] = float(engine.store.counters.evicted_blocks)
    stats["num_requests_running"] = float(engine.core.num_running)
    stats["num_requests_waiting"] = float(engine.core.num_waiting)
    stats["num_clients"] = float(len(engine.core.clients))
    stats["jain_index"] = engine.core.clients.jain_index()
    stats["num_preemptions_total"] = stats.pop("preemptions_total")
    blocks = [
        (each, engine.fit.plan.block_bytes(group))
        for each, group in zip(engine.store.stats(), engine.fit.plan.program.kv_groups(), strict=True)
    ]
    stats["kv_total_bytes"] = float(sum(each.total * size for each, size in blocks))
    stats["kv_used_bytes"] = float(sum(each.used * size for each, size in blocks))
    stats["kv_cached_bytes"] = float(sum(each.cached * size for each, size in blocks))
    stats["kv_waste_ratio"] = _waste_ratio(engine)
    stats["ledger_bytes"] = float(engine.resources.ledger.used(RAM))
    stats["drift_bytes"] = float(engine.drift.drift_bytes)
    return stats
