# SPDX-License-Identifier: Apache-2.0
"""Many instances in one virtual time: the server's own core, planner, store and forest in each, and an event loop over integers.

Events are (nanosecond, number, what), so that equal times run in the order in which they were scheduled and nothing else decides. A step
takes effect at once and its tokens count at its end; what arrives meanwhile is seen by the next step, as behind a real engine's thread.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from ziggurat.clock import VirtualClock
from ziggurat.errors import DoesNotFit, RequestError
from ziggurat.hardware.compiled import NS_PER_S, compile_cost, kv_pool_tokens, work_of
from ziggurat.hardware.models import BYTES_16_BIT, ModelShape, find_model
from ziggurat.memory.paged import PagedKVStore
from ziggurat.programs.program import KVGroup
from ziggurat.scheduling.core import EngineCore
from ziggurat.scheduling.decisions import DecisionLog
from ziggurat.scheduling.dispatch import DISPATCHERS, LoadReport
from ziggurat.scheduling.order import ORDERS
from ziggurat.scheduling.outputs import StepOutput
from ziggurat.scheduling.planners import resolve
from ziggurat.scheduling.protocol import Batch, SampledToken, StepResult, TokenBudget
from ziggurat.scheduling.sampling import SamplingParams
from ziggurat.scheduling.sequence import Request
from ziggurat.simulation.scenario import Scenario
from ziggurat.units import format_bytes
from ziggurat.workload.records import Arrival, RecordBook, RequestRecord

StepCostNs = Callable[[Batch], int]
_TOKEN = SampledToken(token_id=0)


class TimedExecutor:
    """Computes nothing and says how long it would have taken. All tokens are 0: nobody looks at them.

    Attributes:
        last_ns: of the last step.
    """

    def __init__(self, cost_ns: StepCostNs) -> None:
        self._cost_ns = cost_ns
        self.last_ns = 0

    def run(self, batch: Batch) -> StepResult:
        """See `Executor`."""
        self.last_ns = self._cost_ns(batch)
        tokens = {seq_id: _TOKEN for item in batch.items if item.sample is not None for seq_id in item.sample.seq_ids}
        return StepResult(tokens=tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSpan:
    """One step for a timeline."""

    instance: int
    start_ns: int
    end_ns: int
    num_tokens: int
    num_seqs: int


@dataclass(slots=True)
class Instance:
    """A served replica."""

    number: int
    core: EngineCore
    store: PagedKVStore
    executor: TimedExecutor
    is_busy: bool = False
    waiting_tokens: int = 0
    busy_ns: int = 0
    num_steps: int = 0
    num_requests: int = 0
    unadmitted: dict[str, int] = field(default_factory=dict)

    def report(self) -> LoadReport:
        """What dispatchers are told."""
        return LoadReport(
            self.core.num_running, self.core.num_waiting, self.waiting_tokens, self.store.free_blocks()[0]
        )


class Cluster:
    """A scenario at work.

    Args:
        cost_ns: nanoseconds of a batch; by default the compiled cost model of the scenario.
        on_record: gets every record when its request has ended; then none is kept.
        on_step: gets every step.
        logs_decisions: keep what every instance decided in every step.

    Raises:
        DoesNotFit: the weights leave no room for one block of KV.
    """

    def __init__(
        self,
        scenario: Scenario,
        *,
        cost_ns: StepCostNs | None = None,
        on_record: Callable[[RequestRecord], None] | None = None,
        on_step: Callable[[StepSpan], None] | None = None,
        logs_decisions: bool = False,
    ) -> None:
        self._scenario = scenario
        self._shape = find_model(scenario.model)
        self._clock = VirtualClock()
        self._on_step, self._on_record = on_step, on_record
        self._dispatcher = DISPATCHERS.get(scenario.dispatcher)(scenario.instances, scenario.block_size)
        self.num_blocks = _num_blocks(scenario, self._shape)
        self.logs = [DecisionLog(keep=True) for _ in range(scenario.instances)] if logs_decisions else []
        cost = cost_ns or _compiled(scenario, self._shape)
        self.instances = [self._make_instance(number, cost) for number in range(scenario.instances)]
        self._heap: list[tuple[int, int, int, Instance | Arrival]] = []
        self._sequence = 0
        self._book = RecordBook()
        self._next_token = 0
        self._owner: dict[str, Instance] = {}

    @property
    def now_ns(self) -> int:
        """Virtual time."""
        return round(self._clock.now() * NS_PER_S)

    def run(self, arrivals: Iterable[Arrival]) -> list[RequestRecord]:
        """Serve everything; returns the records in order of arrival, unless they went to ``on_record``."""
        coming = iter(sorted(arrivals, key=lambda arrival: arrival.t_s))
        self._schedule_next(coming)
        while self._heap:
            at_ns, _, kind, subject = heapq.heappop(self._heap)
            self._clock.sleep_until(at_ns / NS_PER_S)
            if kind == 0:
                assert isinstance(subject, Arrival)
                self._arrive(subject, at_ns)
                self._schedule_next(coming)
            else:
                assert isinstance(subject, Instance)
                subject.is_busy = False
                self._step(subject, at_ns)
        return self._book.records()

    # ---- events

    def _schedule_next(self, coming: Iterator[Arrival]) -> None:
        arrival = next(coming, None)
        if arrival is not None:
            self._schedule(round(arrival.t_s * NS_PER_S), 0, arrival)

    def _schedule(self, at_ns: int, kind: int, subject: Instance | Arrival) -> None:
        heapq.heappush(self._heap, (at_ns, self._sequence, kind, subject))
        self._sequence += 1

    def _arrive(self, arrival: Arrival, at_ns: int) -> None:
        prompt_ids = self._prompt(arrival)
        instance = self.instances[self._dispatcher.dispatch(prompt_ids)]
        request = Request(
            request_id=arrival.id,
            prompt_ids=prompt_ids,
            params=SamplingParams(n=arrival.n, max_tokens=arrival.max_new, ignore_eos=True),
            priority=arrival.priority,
        )
        self._book.arrive(
            arrival.id, arrival.t_s, arrival.prompt_len, n=arrival.n, tenant=arrival.tenant, session=arrival.session
        )
        instance.num_requests += 1
        try:
            instance.core.add(request, at_ns / NS_PER_S)
        except RequestError as error:
            self._book.refuse(arrival.id, at_ns / NS_PER_S, str(error))
            self._hand_on(arrival.id)
            return
        instance.unadmitted[arrival.id] = arrival.prompt_len
        instance.waiting_tokens += arrival.prompt_len
        self._dispatcher.on_load(instance.number, instance.report())
        if not instance.is_busy:
            self._step(instance, at_ns)

    def _prompt(self, arrival: Arrival) -> Sequence[int]:
        """Its tokens: made up from what they share, or numbers of their own where they share nothing."""
        if arrival.prompt_ids is not None or arrival.hash_ids or arrival.session is not None:
            return arrival.prompt(1 << 31)
        start = self._next_token
        self._next_token += arrival.prompt_len
        return range(start, self._next_token)

    def _step(self, instance: Instance, at_ns: int) -> None:
        """Run one step, if there is work; its tokens are there at its end."""
        core = instance.core
        if not core.has_work:
            return
        instance.executor.last_ns = 0
        output = core.step(at_ns / NS_PER_S)
        end_ns = at_ns + instance.executor.last_ns
        instance.is_busy = True
        instance.busy_ns += instance.executor.last_ns
        instance.num_steps += 1
        self._note(instance, output, at_ns / NS_PER_S, end_ns / NS_PER_S)
        if self._on_step is not None:
            self._on_step(
                StepSpan(
                    instance=instance.number,
                    start_ns=at_ns,
                    end_ns=end_ns,
                    num_tokens=output.num_batched_tokens,
                    num_seqs=output.num_batched_seqs,
                )
            )
        self._dispatcher.on_load(instance.number, instance.report())
        self._schedule(end_ns, 1, instance)

    def _note(self, instance: Instance, output: StepOutput, start_s: float, end_s: float) -> None:
        book = self._book
        for entry in output.admitted:
            book.admit(entry.request_id, start_s, entry.num_cached_tokens)
            instance.waiting_tokens -= instance.unadmitted.pop(entry.request_id, 0)
        for new in output.tokens:
            request_id, _, index = new.seq_id.rpartition("/")
            book.token(request_id, int(index), end_s)
        for end in output.finished:
            book.end(end.request_id, end_s, end.reason, num_preemptions=end.num_preemptions, error=end.error)
            if end.is_request_done:
                instance.waiting_tokens -= instance.unadmitted.pop(end.request_id, 0)
                self._hand_on(end.request_id)

    def _hand_on(self, request_id: str) -> None:
        if self._on_record is not None:
            self._on_record(self._book.pop(request_id))

    # ---- parts

    def _make_instance(self, number: int, cost_ns: StepCostNs) -> Instance:
        scenario, shape = self._scenario, self._shape
        group = KVGroup(
            index=0,
            layers=tuple(range(shape.num_layers)),
            num_kv_heads=shape.num_kv_heads,
            head_dim=shape.head_size,
            window=None,
        )
        block_bytes = group.values_per_token() * BYTES_16_BIT * scenario.block_size
        store = PagedKVStore(
            [group],
            [self.num_blocks],
            scenario.block_size,
            lease=None,
            block_bytes=[block_bytes],
            enable_prefix_caching=scenario.enable_prefix_caching,
            max_chunk_tokens=scenario.max_num_batched_tokens,
        )
        executor = TimedExecutor(cost_ns)
        core = EngineCore(
            store,
            resolve(scenario.planner),
            executor,
            TokenBudget(
                max_num_batched_tokens=scenario.max_num_batched_tokens,
                max_num_seqs=min(scenario.max_num_seqs, scenario.max_num_batched_tokens - 1),
            ),
            max_model_len=scenario.max_model_len,
            block_bytes=[block_bytes],
            max_queued_requests=1 << 30,
            order=ORDERS.get(scenario.scheduling_policy),
            log=self.logs[number] if self.logs else None,
        )
        return Instance(number, core, store, executor)


def _compiled(scenario: Scenario, shape: ModelShape) -> StepCostNs:
    cost = compile_cost(
        shape,
        scenario.device,
        scenario.layout,
        step_overhead_s=scenario.overhead.step_ms / 1e3,
        sequence_overhead_s=scenario.overhead.sequence_ms / 1e3,
    )
    return lambda batch: cost(work_of((item.start, len(item.token_ids)) for item in batch.items))


def _num_blocks(scenario: Scenario, shape: ModelShape) -> int:
    tokens = kv_pool_tokens(shape, scenario.device, scenario.layout, scenario.memory_share)
    if tokens < scenario.block_size:
        ranks = scenario.layout.tensor_parallel
        available = (tokens * shape.kv_bytes_per_token) + shape.weight_bytes
        raise DoesNotFit(
            f"{shape.name} has {format_bytes(shape.weight_bytes)} of weights, and {scenario.memory_share:.0%} of {ranks} x "
            f"{scenario.device} leave no room for KV beside them: raise layout.tensor_parallel or take a larger device",
            needed_bytes=shape.weight_bytes + shape.kv_bytes_per_token * scenario.block_size,
            available_bytes=max(0, available),
        )
    return tokens // scenario.block_size
