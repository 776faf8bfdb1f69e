# SPDX-License-Identifier: Apache-2.0
"""The order of the queue, vLLM's ``--scheduling-policy``: a pure rank of a sequence. The lowest rank is served first and gives way last.

Which sequences share a step is another question and the batch planner's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from ziggurat.registry import Registry
from ziggurat.scheduling.sequence import SequenceState

QueueOrder: TypeAlias = Callable[[SequenceState], tuple[int, ...]]
ORDERS: Registry[QueueOrder] = Registry("scheduling policy")


@ORDERS.register("fcfs")
def fcfs(seq: SequenceState) -> tuple[int, ...]:
    """First come, first served; continuations of one request in their order."""
    return (seq.arrival, seq.index)


@ORDERS.register("priority")
def priority(seq: SequenceState) -> tuple[int, ...]:
    """The lower ``priority`` of the request first, first come within. A steady stream of low numbers starves high ones."""
    return (seq.priority, seq.arrival, seq.index)
