# SPDX-License-Identifier: Apache-2.0
"""When others need the memory: a budget that follows the control group's limit and the kernel's own measure of stalls.

Pure but for `read_stalls`.

The kernel's pressure stall information (PSI, Documentation/accounting/psi.rst) says which share of time tasks of a group waited for memory.
A limit that was lowered is followed at once and in full; stalls take a tenth of the budget at a time, and a tenth comes back after half a
minute without.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

STALLS_HIGH, STALLS_LOW = 10.0, 1.0
"""Percent of the last ten seconds in which some task waited for memory."""
STEP = 0.1
CALM_S = 30.0
PSI_PATHS = (Path("/sys/fs/cgroup/memory.pressure"), Path("/proc/pressure/memory"))
_SOME = re.compile(r"^some avg10=(\d+(?:\.\d+)?)", re.M)


def read_stalls(paths: tuple[Path, ...] = PSI_PATHS) -> float | None:
    """Percent of the last ten seconds in which some task waited for memory, by the first file that says it; None if none does."""
    for path in paths:
        try:
            found = _SOME.search(path.read_text(encoding="ascii"))
        except (OSError, UnicodeDecodeError):
            continue
        if found:
            return float(found[1])
    return None


@dataclass(slots=True, kw_only=True)
class BudgetGovernor:
    """Decides about one engine's budget.

    Attributes:
        most: what it was started with.
        budget: as it is now; whoever changes it says so here.
        least: known not to fit below; raised when a change was refused.
        calm_since_s: since when nothing stalls and the limit leaves room; None while something does.
    """

    most: int
    budget: int
    least: int = 0
    calm_since_s: float | None = None

    def decide(self, now_s: float, room_bytes: int, stalls: float | None) -> int | None:
        """Another budget, or None to leave it.

        Args:
            room_bytes: what the limit of the group and the machine leave the process above its baseline.
            stalls: percent of the last ten seconds (`read_stalls`); None counts as calm.
        """
        is_stalling = stalls is not None and stalls >= STALLS_HIGH
        if room_bytes < self.budget or is_stalling:
            self.calm_since_s = None
            wanted = min(room_bytes, int(self.budget * (1 - STEP)) if is_stalling else self.budget)
            wanted = max(wanted, self.least)
            return wanted if wanted < self.budget else None
        if stalls is not None and stalls > STALLS_LOW:
            self.calm_since_s = None
            return None
        if self.calm_since_s is None:
            self.calm_since_s = now_s
        if self.budget < self.most and now_s - self.calm_since_s >= CALM_S:
            self.calm_since_s = now_s
            wanted = min(self.most, room_bytes, int(self.budget * (1 + STEP)) + 1)
            return wanted if wanted > self.budget else None
        return None

    def refused(self, least_bytes: int) -> None:
        """A change was too small for the model: do not ask below that again."""
        self.least = max(self.least, least_bytes)
