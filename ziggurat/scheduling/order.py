# SPDX-License-Identifier: Apache-2.0
"""The order of the queue, vLLM's ``--scheduling-policy``: a pure rank of a sequence. The lowest rank is served first and gives way last.

Which sequences share a step is another question and the batch planner's.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable
from typing import TypeAlias

from ziggurat.errors import RequestError
from ziggurat.registry import Registry
from ziggurat.scheduling.fairness import PROMPT_SERVICE
from ziggurat.scheduling.sequence import EngineRequest, SequenceState

QueueOrder: TypeAlias = Callable[[SequenceState], tuple[float, ...]]
ORDERS: Registry[QueueOrder] = Registry("scheduling policy")


@ORDERS.register("fcfs")
def fcfs(seq: SequenceState) -> tuple[float, ...]:
    """First come, first served; continuations of one request in their order."""
    return (seq.arrival, seq.index)


@ORDERS.register("priority")
def priority(seq: SequenceState) -> tuple[float, ...]:
    """The lower ``priority`` of the request first, first come within. A steady stream of low numbers starves high ones."""
    return (seq.priority, seq.arrival, seq.index)


@ORDERS.register("deadline")
def deadline(seq: SequenceState) -> tuple[float, ...]:
    """The earliest deadline first, those without one last, first come within."""
    return (seq.deadline_s, seq.arrival, seq.index)


@ORDERS.register("vtc")
def vtc(seq: SequenceState) -> tuple[float, ...]:
    """The client that got least service first (`ziggurat.scheduling.fairness`), first come within a client.

    Ranks move while sequences wait: the queue is put in order by `arrange` before each decision.
    """
    return (seq.client.virtual, seq.arrival, seq.index)


def arrange(waiting: Iterable[SequenceState]) -> list[SequenceState]:
    """The queue of ``vtc``: always the next sequence of the client with the smallest counter, which then counts its prompt.

    Without that count a step that admits several would take them all from one client.
    """
    queues: dict[str, deque[SequenceState]] = {}
    for seq in sorted(waiting, key=fcfs):
        queues.setdefault(seq.client.name, deque()).append(seq)
    # The name breaks ties after the arrival so that entries always compare.
    heap = [(queue[0].client.virtual, queue[0].arrival, name) for name, queue in queues.items()]
    heapq.heapify(heap)
    arranged = []
    while heap:
        virtual, _, name = heap[0]
        seq = queues[name].popleft()
        arranged.append(seq)
        if not queues[name]:
            heapq.heappop(heap)
            continue
        virtual += PROMPT_SERVICE * len(seq.prompt_ids) / seq.client.weight
        heapq.heapreplace(heap, (virtual, queues[name][0].arrival, name))
    return arranged


def check_wishes(request: EngineRequest, policy: str) -> None:
    """Refuse what the policy would not look at.

    Raises:
        RequestError: a priority or a deadline under another policy.
    """
    if request.priority and policy != "priority":
        raise RequestError("priority needs a server with --scheduling-policy priority", param="priority")
    if request.deadline_s is not None and policy != "deadline":
        raise RequestError("deadline_s needs a server with --scheduling-policy deadline", param="deadline_s")
