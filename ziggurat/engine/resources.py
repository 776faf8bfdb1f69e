# SPDX-License-Identifier: Apache-2.0
"""The bytes of one engine: a ledger, a lease for every part of the Fit, and the arenas that the leases stand for."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from ziggurat.clock import Clock
from ziggurat.memory.arena import Arena
from ziggurat.memory.fit import Fit
from ziggurat.memory.ledger import RAM, SWAP, Lease, Ledger
from ziggurat.programs.plan import Plan

BASELINE = "baseline"
"""Tier of what the process had before the model came: shown, not counted against ``--memory``."""


@dataclass(frozen=True, slots=True)
class _Row:
    kind: str
    owner: str
    num_bytes: int
    why: str


class Resources:
    """Ledger, leases and arenas of one engine. Owns them; `close` gives all of them back.

    Args:
        fit: what was derived from the budget; the leases have exactly its sizes.
        baseline_bytes: `ProcessMemory.charged_bytes` before anything of the model was there.
        clock: for the ages of the leases.

    Attributes:
        kv_lease: the KV pool; the store divides it among sequences.
        pools: one arena per KV group.
        swap: copies of blocks of preempted sequences, a tier of its own; None without ``--swap-space``.
    """

    def __init__(self, fit: Fit, baseline_bytes: int, clock: Clock, *, swap_bytes: int = 0) -> None:
        self.fit = fit
        self.baseline_bytes = baseline_bytes
        memory_bytes = fit.request.memory_bytes
        self.ledger = Ledger({RAM: memory_bytes, BASELINE: baseline_bytes, SWAP: swap_bytes}, clock)
        self.swap: Arena | None = None
        self._exit = ExitStack()
        self.is_open = True
        try:
            self._leases = {row.kind: self._reserve(row, RAM) for row in _rows(fit)}
            baseline = _Row("baseline", "process", baseline_bytes, "imports, thread pools and one warm-up step")
            self._reserve(baseline, BASELINE)
            plan = fit.plan
            self.weights = self._arena(plan.weight_bytes, "weights")
            # All of it will be written, and every step reads all of it: with small pages the processor spends a good part of a
            # step on looking up where they are.
            self.weights.advise_huge()
            self.workspace = self._arena(plan.workspace_bytes, "workspace")
            self.tables = self._arena(plan.table_bytes, "rotary tables")
            self.pools: Sequence[Arena] = [
                self._arena(count * plan.block_bytes(group), f"KV group {group.index}")
                for count, group in zip(fit.num_blocks, plan.program.kv_groups(), strict=True)
            ]
            if swap_bytes:
                self._reserve(_Row("swap", "kv store", swap_bytes, "copies of KV of preempted sequences"), SWAP)
                self.swap = self._arena(swap_bytes, "swap space")
        except BaseException:
            self.close()
            raise

    @property
    def kv_lease(self) -> Lease:
        """The lease of the whole KV pool."""
        return self._leases["kv"]

    def known_bytes(self) -> int:
        """What the ledger says is really in RAM: all leases in full, but of the KV pool only pages that were written, and no reserve."""
        touched = sum(pool.resident_bytes() for pool in (*self.pools, *([self.swap] if self.swap else [])))
        untouched = self._leases["kv"].num_bytes + self._leases["reserve"].num_bytes
        return self.ledger.used(RAM) - untouched + touched

    def reserve_bytes(self) -> int:
        """The planner's own reserve."""
        return self._leases["reserve"].num_bytes

    def refit(self, fit: Fit) -> None:
        """Another budget for the same Plan: the KV pool, its bookkeeping and the reserve change size; what shrinks goes first."""
        limit = fit.request.memory_bytes
        changes = [(row.num_bytes, self._leases[row.kind]) for row in _rows(fit)]
        if limit > self.ledger.limit(RAM):
            self.ledger.set_limit(RAM, limit)
        for num_bytes, lease in sorted(changes, key=lambda change: change[0] - change[1].num_bytes):
            lease.resize(num_bytes)
        for row in _rows(fit):
            self._leases[row.kind].why = row.why
        self.ledger.set_limit(RAM, limit)
        self.fit = fit

    def close(self) -> None:
        """Give back arenas and leases and audit that nothing is left. The KV store must have been closed before."""
        if not self.is_open:
            return
        self.is_open = False
        self._exit.close()
        self.ledger.audit()
        left = self.ledger.used()
        assert left == 0, f"{left} bytes are still leased: {self.ledger.rows()}"

    def _reserve(self, row: _Row, tier: str) -> Lease:
        lease = self.ledger.reserve(row.kind, row.owner, tier, row.num_bytes, why=row.why)
        self._exit.callback(_release_tree, lease)
        return lease

    def _arena(self, num_bytes: int, name: str) -> Arena:
        return self._exit.enter_context(Arena(num_bytes, name))


def _release_tree(lease: Lease) -> None:
    """Children first: when building an engine fails, the KV store may be there already and have its own."""
    for child in list(lease.children):
        _release_tree(child)
    lease.release()


def _weights_note(plan: Plan) -> str:
    streamed, layers = len(plan.streamed_layers), len(plan.layer_spans)
    note = f"{len(plan.weights)} packed weights"
    return f"{note}; {streamed} of {layers} layers are read anew in every step" if streamed else note


def _rows(fit: Fit) -> list[_Row]:
    plan, request = fit.plan, fit.request
    pool = " + ".join(str(count) for count in fit.num_blocks)
    return [
        _Row("weights", "model", plan.weight_bytes, _weights_note(plan)),
        _Row("workspace", "executor", plan.workspace_bytes, f"{plan.limits.max_num_batched_tokens} tokens per step"),
        _Row("tables", "executor", plan.table_bytes, f"rotary tables of {plan.limits.max_model_len} positions"),
        _Row("sampler", "executor", plan.sampler_bytes, f"one row of {plan.program.vocab_size} logits"),
        _Row("overhead", "process", request.overhead_bytes, "tokenizer, Python objects, allocator slack (calibrated)"),
        _Row("metadata", "kv store", fit.metadata_bytes, "bookkeeping of KV blocks when all are in use"),
        _Row("kv", "kv store", fit.kv_pool_bytes, f"pool of {pool} blocks of {plan.limits.block_size} tokens"),
        _Row(
            "reserve", "planner", request.memory_bytes - fit.planned_bytes(), "kept free, and what no whole block fits"
        ),
    ]
