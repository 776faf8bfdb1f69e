# SPDX-License-Identifier: Apache-2.0
"""Who is where: the queue, the running list, the open requests, and the only places where a sequence changes between them.

Every change of place goes together with the store: running sequences are open in it, all others are not.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from math import ceil
from typing import Any

from ziggurat.memory.kv import DROPPED, KVStore
from ziggurat.scheduling.fairness import Clients
from ziggurat.scheduling.order import QueueOrder, arrange, fcfs, vtc
from ziggurat.scheduling.outputs import Admission, Counters, Finished
from ziggurat.scheduling.sequence import FinishReason, SequenceState, SequenceStatus
from ziggurat.scheduling.swapping import Swapper

MAX_RETRY_AFTER_S = 60
_RATE_WINDOW = 32


class Roster:
    """Sequences by place.

    Attributes:
        running: in order of admission, forks behind their sibling.
        waiting: the queue, head first, in the order of the scheduling policy.
        num_queued: requests that were never admitted.
        now_s: the latest time that the core was told.
    """

    def __init__(
        self,
        store: KVStore,
        counters: Counters,
        order: QueueOrder = fcfs,
        swapper: Swapper | None = None,
        clients: Clients | None = None,
    ) -> None:
        self.running: list[SequenceState] = []
        self.waiting: OrderedDict[str, SequenceState] = OrderedDict()
        self.num_queued = 0
        self.now_s = 0.0
        self._store = store
        self._counters = counters
        self._order = order
        self._swapper = swapper
        self._clients = Clients() if clients is None else clients
        self._requests: dict[str, dict[str, SequenceState]] = {}
        self._request_ends_s: deque[float] = deque(maxlen=_RATE_WINDOW)

    @property
    def num_requests(self) -> int:
        """Requests with at least one sequence that has not ended."""
        return len(self._requests)

    def sequences(self, request_id: str) -> list[SequenceState]:
        """What has not ended of a request, first continuation first."""
        return list(self._requests.get(request_id, {}).values())

    def find(self, seq_id: str) -> SequenceState | None:
        """A sequence that has not ended."""
        return self._requests.get(seq_id.rpartition("/")[0], {}).get(seq_id)

    def enrol(self, family: Sequence[SequenceState]) -> None:
        """A new request: its first continuation waits, the others wait for it."""
        first = family[0]
        first.children = list(family[1:])
        self._enqueue(first)
        self.num_queued += 1
        self._requests[first.request_id] = {seq.seq_id: seq for seq in family}
        self._counters.requests += 1
        self._counters.sequences += len(family)

    def admit(self, seq_id: str) -> Admission:
        """Open a waiting sequence in the store; it takes over what is cached of its tokens."""
        seq = self.waiting.pop(seq_id)
        self._clients.go(seq.client)
        num_cached = self._store.open(seq.seq_id, seq.token_ids(), salt=seq.cache_salt, max_cached=seq.max_cached)
        seq.num_computed = num_cached
        is_readmission = seq.was_admitted
        if not is_readmission:
            seq.was_admitted = True
            seq.num_cached = num_cached
            self.num_queued -= 1
            seq.client.serve(len(seq.prompt_ids) - num_cached, 0)
            self._counters.prefix_queried_tokens += len(seq.prompt_ids)
            self._counters.prefix_hit_tokens += num_cached
        self.running.append(seq)
        self._move(seq, SequenceStatus.RUNNING)
        return Admission(
            seq_id=seq.seq_id,
            request_id=seq.request_id,
            num_cached_tokens=num_cached,
            is_readmission=is_readmission,
            miss_reason=None if num_cached else self._store.last_miss_reason,
        )

    def preempt(self, seq: SequenceState) -> None:
        """Take a running sequence's space; it goes back to its place in the queue, keeps its tokens and will compute them again."""
        self.running.remove(seq)
        if self._swapper is not None:
            self._swapper.save(seq)
        self._store.release(seq.seq_id)
        seq.num_computed = 0
        seq.num_preemptions += 1
        self._counters.preemptions += 1
        self._enqueue(seq)

    def make_room(self, num_blocks: Sequence[int]) -> list[str]:
        """Preempt from the end of the order until what sequences hold fits into so many blocks per group; returns who gave way."""
        gone = []
        while any(stats.used > most for stats, most in zip(self._store.stats(), num_blocks, strict=True)):
            last = self.by_rank()[-1]
            self.preempt(last)
            gone.append(last.seq_id)
        return gone

    def restore(self, seq_id: str) -> None:
        """What an admitted sequence has in the swap space comes back. Everybody of the step is open by now, so nothing that somebody
        counts on is evicted for it."""
        seq = self.find(seq_id)
        if self._swapper is not None and seq is not None:
            self._swapper.load(seq)

    def fork(self, parent: SequenceState, children: Sequence[SequenceState], max_num_seqs: int) -> None:
        """The prompt is finished: its other continuations become sequences of their own.

        They stand right behind their parent, so that the order of admission stays the order of arrival. Those that find no slot
        (n > max_num_seqs) are born waiting; their prompt is in the prefix forest by now.
        """
        place = self.running.index(parent) + 1
        room = max(0, max_num_seqs - sum(seq.num_slots for seq in self.running))
        for child in children:
            child.num_cached = parent.num_cached
            child.was_admitted = True
        for child in reversed(children[room:]):
            self._enqueue(child)
        for child in children[:room]:
            self._store.fork(parent.seq_id, child.seq_id)
            child.num_computed = child.high_water = parent.num_computed
            self._move(child, SequenceStatus.RUNNING)
            self.running.insert(place, child)
            place += 1

    def end_all(
        self, sequences: Iterable[SequenceState], reason: FinishReason, *, error: str | None = None
    ) -> list[Finished]:
        """End sequences, and with each the continuations that wait for its prompt."""
        finished = []
        for seq in sequences:
            if seq.status is not SequenceStatus.FINISHED:
                family, seq.children = [seq, *seq.children], []
                finished += [self.end(member, reason, error=error) for member in family]
        return finished

    def end(
        self, seq: SequenceState, reason: FinishReason, *, stop_token_id: int | None = None, error: str | None = None
    ) -> Finished:
        """The only place where a sequence ends: it leaves its queue, its space goes back, the counters know."""
        assert not seq.children, "end_all ends continuations together"
        siblings = self._requests[seq.request_id]
        if seq.status is SequenceStatus.RUNNING:
            self.running.remove(seq)
            self._store.release(seq.seq_id)
        elif seq.status is SequenceStatus.WAITING:
            del self.waiting[seq.seq_id]
            self._clients.go(seq.client)
            self.num_queued -= not seq.was_admitted
        else:
            for sibling in siblings.values():
                if seq in sibling.children:
                    sibling.children.remove(seq)
        if self._swapper is not None:
            self._swapper.forget(seq.seq_id)
        self._move(seq, SequenceStatus.FINISHED)
        seq.finish_reason = reason
        del siblings[seq.seq_id]
        if not siblings:
            del self._requests[seq.request_id]
            self._clients.leave(seq.client)
            self._request_ends_s.append(self.now_s)
        self._counters.finished[reason] += 1
        return Finished(
            seq_id=seq.seq_id,
            request_id=seq.request_id,
            index=seq.index,
            reason=reason,
            stop_token_id=stop_token_id,
            error=error,
            num_prompt_tokens=len(seq.prompt_ids),
            num_cached_tokens=seq.num_cached,
            num_output_tokens=len(seq.output_ids),
            num_preemptions=seq.num_preemptions,
            is_request_done=not siblings,
            pooled=seq.pooled if reason == "stop" else None,
        )

    def retry_after_s(self) -> int:
        """When a place in the queue should be free: one request's share of the recent rate of endings, 1 to 60 seconds."""
        ends_s = self._request_ends_s
        if len(ends_s) < 2:
            return 1
        return min(MAX_RETRY_AFTER_S, max(1, ceil((self.now_s - ends_s[0]) / (len(ends_s) - 1))))

    def snapshot(self, block_bytes: Sequence[int]) -> list[dict[str, Any]]:
        """Every sequence that has not ended, as plain data, in order of arrival.

        ``num_blocks`` counts table entries per KV group, shared ones included; ``num_own_blocks`` and ``own_bytes`` what its end
        would give back.
        """
        return [self._row(seq, block_bytes) for family in self._requests.values() for seq in family.values()]

    def _row(self, seq: SequenceState, block_bytes: Sequence[int]) -> dict[str, Any]:
        own = held = [0] * len(block_bytes)
        if seq.status is SequenceStatus.RUNNING:
            tables = self._store.view(seq.seq_id).tables
            held = [sum(block != DROPPED for block in table) for table in tables]
            own = list(self._store.held_blocks(seq.seq_id))
        return {
            "seq_id": seq.seq_id,
            "request_id": seq.request_id,
            "state": seq.status.value,
            "since_s": seq.since_s,
            "arrival_s": seq.arrival_s,
            "num_prompt_tokens": len(seq.prompt_ids),
            "num_output_tokens": len(seq.output_ids),
            "num_computed_tokens": seq.num_computed,
            "num_cached_tokens": seq.num_cached,
            "num_preemptions": seq.num_preemptions,
            "num_blocks": held,
            "num_own_blocks": own,
            "own_bytes": sum(count * size for count, size in zip(own, block_bytes, strict=True)),
        }

    def by_rank(self) -> list[SequenceState]:
        """The running sequences in the order of the scheduling policy: the last one is the first to give way."""
        return sorted(self.running, key=self._order)

    def arrange(self) -> None:
        """Put the queue in order again if its ranks move while sequences wait."""
        if self._order is vtc:
            for seq in arrange(self.waiting.values()):
                self.waiting.move_to_end(seq.seq_id)  # in place: the planners' views look at this very queue

    def _enqueue(self, seq: SequenceState) -> None:
        """To its place in the queue: the end or the head in nearly all cases."""
        self._move(seq, SequenceStatus.WAITING)
        self._clients.wait(seq.client)
        waiting, rank = self.waiting, self._order(seq)
        is_last = not waiting or self._order(waiting[next(reversed(waiting))]) < rank
        is_first = bool(waiting) and rank < self._order(waiting[next(iter(waiting))])
        later = [] if is_last or is_first else [name for name in waiting if self._order(waiting[name]) > rank]
        waiting[seq.seq_id] = seq
        if is_first:
            waiting.move_to_end(seq.seq_id, last=False)
        for name in later:
            waiting.move_to_end(name)

    def _move(self, seq: SequenceState, status: SequenceStatus) -> None:
        seq.status = status
        seq.since_s = self.now_s
