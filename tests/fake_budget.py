# SPDX-License-Identifier: Apache-2.0
"""The budget's part of the fake service."""

from __future__ import annotations

from ziggurat.engine.types import BudgetChange
from ziggurat.errors import DoesNotFit


class FakeBudget:
    """Takes any budget of at least 1 MiB."""

    async def set_memory(self, num_bytes: int) -> BudgetChange:
        if num_bytes < 1 << 20:
            raise DoesNotFit("1.00 MiB is the least", needed_bytes=1 << 20, available_bytes=num_bytes)
        return BudgetChange(
            before_bytes=1 << 30, after_bytes=num_bytes, num_blocks=(7,), num_preempted=1, num_evicted_blocks=2
        )
