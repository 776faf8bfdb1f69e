# SPDX-License-Identifier: Apache-2.0
"""The ledger: every byte has a kind, an owner, a tier and a budget.

A `Lease` is the right to a number of bytes in one tier. Top-level leases count against the tier's limit; a child lease lives inside
its parent's bytes and says who uses which part of them::

    tier "ram"  limit 1.00 GiB
    |-- weights   model           [0, 300 MiB)
    |-- kv        pool            [300 MiB, 800 MiB)      counted once, here
    |   |-- kv      chat-17         30 MiB                 inside the pool's bytes
    |   `-- kv      prefix cache   120 MiB
    `-- workspace executor        [800 MiB, 824 MiB)

At every moment: the top-level leases of a tier fit its limit, and the children of a lease fit the lease.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType

from ziggurat.clock import Clock
from ziggurat.errors import DoesNotFit
from ziggurat.units import format_bytes

RAM = "ram"
"""Name of tier 0: what the process itself may add, ``--memory``."""
SWAP = "swap"
"""Name of the tier of copies of preempted sequences in RAM, ``--swap-space``."""

_LIMIT_FLAGS = {RAM: "--memory", SWAP: "--swap-space", "disk": "--kv-offloading-disk-size"}


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerRow:
    """One lease as a table row. ``depth`` is 0 for a top-level lease; children follow their parent."""

    kind: str
    owner: str
    tier: str
    num_bytes: int
    peak_bytes: int
    since_s: float
    why: str
    depth: int


@dataclass(slots=True)
class _Gauge:
    used: int = 0
    peak: int = 0

    def add(self, delta_bytes: int) -> None:
        self.used += delta_bytes
        self.peak = max(self.peak, self.used)


class Lease:
    """The right to ``num_bytes`` bytes of a tier. Whoever reserved it releases it, once; ``with`` does so at the end of the block.

    Attributes:
        peak_bytes: the most it ever had.
        since_s: when it was reserved, by the ledger's clock.
        why: a sentence for people, or "".
        parent: the lease whose bytes it is part of, or None.
    """

    def __init__(
        self, ledger: Ledger, kind: str, owner: str, tier: str, parent: Lease | None, since_s: float, why: str
    ) -> None:
        self._ledger = ledger
        self.kind = kind
        self.owner = owner
        self.tier = tier
        self.parent = parent
        self.since_s = since_s
        self.why = why
        self.num_bytes = 0
        self.peak_bytes = 0
        self.is_open = True
        # A dict, because it keeps the order of reserving and forgets in O(1).
        self.children: dict[Lease, None] = {}
        self.children_bytes = 0

    def reserve(self, kind: str, owner: str, num_bytes: int, *, why: str = "") -> Lease:
        """A child lease inside this one's bytes.

        Raises:
            DoesNotFit: the other children leave less; nothing was taken.
        """
        return self._ledger.reserve(kind, owner, self.tier, num_bytes, parent=self, why=why)

    def resize(self, num_bytes: int) -> None:
        """Grow or shrink to ``num_bytes``.

        Raises:
            DoesNotFit: the tier (or the parent) has not enough room, or the children hold more; the lease is as it was.
        """
        self._ledger.resize(self, num_bytes)

    def release(self) -> None:
        """Give all bytes back. The children must have been released before; releasing twice is our own fault and asserts."""
        self._ledger.release(self)

    @property
    def free_bytes(self) -> int:
        """Bytes that no child holds."""
        return self.num_bytes - self.children_bytes

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.is_open:
            self.release()

    def __repr__(self) -> str:
        return f"Lease({self.kind}, {self.owner}, {self.tier}, {format_bytes(self.num_bytes)})"


class Ledger:
    """Where bytes come from. Safe to use and to read from several threads; every call is O(1) apart from `rows` and `audit`.

    Args:
        limits: bytes per tier; a tier that is not named here does not exist.
        clock: gives ``since_s`` of the leases.
    """

    def __init__(self, limits: Mapping[str, int], clock: Clock) -> None:
        assert all(limit >= 0 for limit in limits.values()), f"negative limit in {dict(limits)}"
        self._limits = dict(limits)
        self._clock = clock
        self._lock = threading.RLock()
        self._top: dict[Lease, None] = {}
        # (tier or None for all, kind or None for all) -> bytes of top-level leases; by kind also children of another kind.
        self._gauges: defaultdict[tuple[str | None, str | None], _Gauge] = defaultdict(_Gauge)

    def reserve(
        self, kind: str, owner: str, tier: str, num_bytes: int, *, parent: Lease | None = None, why: str = ""
    ) -> Lease:
        """Take bytes. The caller must release the lease.

        Raises:
            DoesNotFit: less than ``num_bytes`` is free in the tier (or in the parent); nothing was taken.
        """
        with self._lock:
            assert tier in self._limits, f"no tier {tier!r}: {sorted(self._limits)}"
            assert parent is None or (parent.is_open and parent.tier == tier), f"{parent} cannot hold a lease in {tier}"
            lease = Lease(self, kind, owner, tier, parent, self._clock.now(), why)
            self._change(lease, num_bytes)
            (self._top if parent is None else parent.children)[lease] = None
            return lease

    def resize(self, lease: Lease, num_bytes: int) -> None:
        """See `Lease.resize`."""
        with self._lock:
            assert lease.is_open, f"{lease} was released"
            self._change(lease, num_bytes)

    def release(self, lease: Lease) -> None:
        """See `Lease.release`."""
        with self._lock:
            assert lease.is_open, f"{lease} was released before"
            assert not lease.children, f"{lease} still has {len(lease.children)} children"
            self._change(lease, 0)
            del (self._top if lease.parent is None else lease.parent.children)[lease]
            lease.is_open = False

    def used(self, tier: str | None = None, kind: str | None = None) -> int:
        """Bytes taken now: in one tier or all, by one kind or all. A child counts to its kind unless its parent is of that kind."""
        with self._lock:
            return self._gauges[tier, kind].used if (tier, kind) in self._gauges else 0

    def peak(self, kind: str | None = None, *, tier: str | None = None) -> int:
        """The most bytes that were ever taken at one time, counted as in `used`."""
        with self._lock:
            return self._gauges[tier, kind].peak if (tier, kind) in self._gauges else 0

    def limit(self, tier: str) -> int:
        """The budget of a tier, bytes."""
        with self._lock:
            return self._limits[tier]

    def free(self, tier: str) -> int:
        """Bytes of the tier that no top-level lease holds."""
        with self._lock:
            return self._limits[tier] - self.used(tier)

    def set_limit(self, tier: str, num_bytes: int) -> None:
        """Change a tier's budget. Who wants less than is in use shrinks leases first, so that the budget holds at every moment.

        Raises:
            DoesNotFit: more than that is in use; the limit is as it was.
        """
        with self._lock:
            assert tier in self._limits, f"no tier {tier!r}: {sorted(self._limits)}"
            used = self.used(tier)
            if num_bytes < used:
                raise DoesNotFit(
                    f"{format_bytes(used)} of tier {tier} are in use, a limit of {format_bytes(num_bytes)} does not hold them: "
                    f"release {format_bytes(used - num_bytes)} first",
                    needed_bytes=used,
                    available_bytes=num_bytes,
                )
            self._limits[tier] = num_bytes

    def rows(self) -> list[LedgerRow]:
        """All leases in the order of reserving, children below their parent."""
        with self._lock:
            return [_row(lease, depth) for lease, depth in self._walk()]

    def audit(self) -> None:
        """Check every sum against the leases; an assertion names the first that is wrong."""
        with self._lock:
            sums: defaultdict[tuple[str | None, str | None], int] = defaultdict(int)
            for lease, depth in self._walk():
                assert lease.is_open and 0 <= lease.num_bytes <= lease.peak_bytes, f"{lease} is broken"
                children_bytes = sum(child.num_bytes for child in lease.children)
                assert children_bytes == lease.children_bytes <= lease.num_bytes, f"children of {lease} do not add up"
                assert (depth == 0) == (lease.parent is None), f"{lease} stands in the wrong place"
                for key in _gauge_keys(lease):
                    sums[key] += lease.num_bytes
            for key, gauge in self._gauges.items():
                assert sums[key] == gauge.used <= gauge.peak, f"{key}: {gauge} but the leases have {sums[key]}"
            for tier, limit in self._limits.items():
                assert sums[tier, None] <= limit, f"tier {tier}: {sums[tier, None]} of {limit} bytes are taken"

    def _change(self, lease: Lease, num_bytes: int) -> None:
        assert num_bytes >= 0, f"{lease}: negative size {num_bytes}"
        delta_bytes = num_bytes - lease.num_bytes
        room_bytes = self.free(lease.tier) if lease.parent is None else lease.parent.free_bytes
        if delta_bytes > room_bytes:
            raise self._refusal(lease, num_bytes, lease.num_bytes + room_bytes)
        if num_bytes < lease.children_bytes:
            raise DoesNotFit(
                f"{lease.kind} of {lease.owner} cannot shrink to {format_bytes(num_bytes)}: "
                f"its parts hold {format_bytes(lease.children_bytes)}; release some of them first",
                needed_bytes=lease.children_bytes,
                available_bytes=num_bytes,
            )
        lease.num_bytes = num_bytes
        lease.peak_bytes = max(lease.peak_bytes, num_bytes)
        if lease.parent is not None:
            lease.parent.children_bytes += delta_bytes
        for key in _gauge_keys(lease):
            self._gauges[key].add(delta_bytes)

    def _refusal(self, lease: Lease, needed_bytes: int, available_bytes: int) -> DoesNotFit:
        if lease.parent is not None:
            where = f"{lease.parent.kind} of {lease.parent.owner} ({format_bytes(lease.parent.num_bytes)})"
            step = "wait until other parts of it are released, or give it more bytes"
        else:
            where = f"tier {lease.tier} (limit {format_bytes(self._limits[lease.tier])})"
            flag = _LIMIT_FLAGS.get(lease.tier)
            missing = format_bytes(needed_bytes - available_bytes)
            step = f"raise {flag or 'the limit'} by {missing}, or ask for less"
        return DoesNotFit(
            f"{lease.kind} of {lease.owner} needs {format_bytes(needed_bytes)}, "
            f"{format_bytes(available_bytes)} available in {where}: {step}",
            needed_bytes=needed_bytes,
            available_bytes=available_bytes,
        )

    def _walk(self) -> Iterator[tuple[Lease, int]]:
        stack = [(lease, 0) for lease in reversed(self._top)]
        while stack:
            lease, depth = stack.pop()
            yield lease, depth
            stack.extend((child, depth + 1) for child in reversed(lease.children))


def _gauge_keys(lease: Lease) -> Iterator[tuple[str | None, str | None]]:
    """The sums that a lease's bytes are part of."""
    if lease.parent is None:
        yield None, None
        yield lease.tier, None
    ancestor = lease.parent
    while ancestor is not None:
        if ancestor.kind == lease.kind:
            return
        ancestor = ancestor.parent
    yield None, lease.kind
    yield lease.tier, lease.kind


def _row(lease: Lease, depth: int) -> LedgerRow:
    return LedgerRow(
        kind=lease.kind,
        owner=lease.owner,
        tier=lease.tier,
        num_bytes=lease.num_bytes,
        peak_bytes=lease.peak_bytes,
        since_s=lease.since_s,
        why=lease.why,
        depth=depth,
    )
