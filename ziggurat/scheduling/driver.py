# SPDX-License-Identifier: Apache-2.0
"""Replays a trace through an engine core in virtual time: no threads, no wall clock, the same result every time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from ziggurat.clock import VirtualClock
from ziggurat.errors import RequestError
from ziggurat.scheduling.core import EngineCore
from ziggurat.scheduling.outputs import Finished, StepOutput
from ziggurat.scheduling.sampling import SamplingParams
from ziggurat.scheduling.sequence import EngineRequest, Request
from ziggurat.workload.records import Arrival, RecordBook, RequestRecord

DEFAULT_VOCAB_SIZE = 32_000


def request_of(arrival: Arrival, *, vocab_size: int = DEFAULT_VOCAB_SIZE) -> Request:
    """The request that an arrival stands for: exactly ``max_new`` tokens per continuation, whatever is sampled."""
    params = SamplingParams(n=arrival.n, max_tokens=arrival.max_new, ignore_eos=True)
    return Request(
        request_id=arrival.id, prompt_ids=arrival.prompt(vocab_size), params=params, priority=arrival.priority
    )


class VirtualDriver:
    """Drives one core with one clock.

    The executor moves the clock (`ziggurat.simulation.SimulatedExecutor`); with one that does not, steps take no time. A request
    is seen by the first step that starts at or after its arrival; ties go by the order of the trace, requests before cancellations.

    Args:
        make_request: what an arrival asks for; by default `request_of`.
        on_step: called after each step with its output and the time of its end.
    """

    def __init__(
        self,
        core: EngineCore,
        clock: VirtualClock,
        *,
        make_request: Callable[[Arrival], EngineRequest] = request_of,
        on_step: Callable[[StepOutput, float], None] | None = None,
    ) -> None:
        self._core = core
        self._clock = clock
        self._make_request = make_request
        self._on_step = on_step
        self._book = RecordBook()

    def run(self, arrivals: Iterable[Arrival], *, aborts: Iterable[tuple[float, str]] = ()) -> list[RequestRecord]:
        """Serve everything. ``aborts`` are (time, request id). Returns one record per arrival, in order of arrival; refused
        requests have one too."""
        coming = deque(sorted(arrivals, key=lambda arrival: arrival.t_s))
        leaving = deque(sorted(aborts, key=lambda abort: abort[0]))
        while coming or self._core.has_work:
            if not self._core.has_work:
                self._clock.sleep_until(coming[0].t_s)
            now_s = self._clock.now()
            while coming and coming[0].t_s <= now_s:
                self._arrive(coming.popleft(), now_s)
            while leaving and leaving[0][0] <= now_s:
                self._end(self._core.abort(leaving.popleft()[1]), now_s)
            if self._core.has_work:
                self._step(now_s)
        return self._book.records()

    def _arrive(self, arrival: Arrival, now_s: float) -> None:
        book, request = self._book, self._make_request(arrival)
        book.arrive(
            arrival.id, arrival.t_s, arrival.prompt_len, n=arrival.n, tenant=arrival.tenant, session=arrival.session
        )
        try:
            self._core.add(request, arrival.t_s)
        except RequestError as error:
            book.refuse(arrival.id, now_s, str(error))

    def _step(self, now_s: float) -> None:
        output = self._core.step(now_s)
        end_s = self._clock.now()
        for entry in output.admitted:
            self._book.admit(entry.request_id, now_s, entry.num_cached_tokens)
        for new in output.tokens:
            request_id, _, index = new.seq_id.rpartition("/")
            self._book.token(request_id, int(index), end_s)
        self._end(output.finished, end_s)
        if self._on_step is not None:
            self._on_step(output, end_s)

    def _end(self, finished: Iterable[Finished], t_s: float) -> None:
        for entry in finished:
            self._book.end(
                entry.request_id, t_s, entry.reason, num_preemptions=entry.num_preemptions, error=entry.error
            )
