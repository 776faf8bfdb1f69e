# SPDX-License-Identifier: Apache-2.0
"""A core as the client of a replay. With a virtual clock and a simulated executor the whole replay is virtual and deterministic."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ziggurat.clock import Clock
from ziggurat.scheduling.core import EngineCore
from ziggurat.scheduling.driver import request_of
from ziggurat.scheduling.outputs import Finished, StepOutput
from ziggurat.scheduling.sequence import EngineRequest
from ziggurat.workload.records import Arrival
from ziggurat.workload.replay import Event


class CoreClient:
    """Steps a core between two sends.

    Args:
        clock: moved by the executor, or the real one.
        make_request: what an arrival asks for.
        on_step: called after each step with its output and the time of its end.
    """

    def __init__(
        self,
        core: EngineCore,
        clock: Clock,
        *,
        make_request: Callable[[Arrival], EngineRequest] = request_of,
        on_step: Callable[[StepOutput, float], None] | None = None,
    ) -> None:
        self._core = core
        self._clock = clock
        self._make_request = make_request
        self._on_step = on_step

    def now(self) -> float:
        """See `ziggurat.workload.replay.Client.now`."""
        return self._clock.now()

    def submit(self, arrival: Arrival, due_s: float) -> None:
        """See `ziggurat.workload.replay.Client.submit`."""
        self._core.add(self._make_request(arrival), due_s)

    def poll(self, until_s: float | None) -> list[Event]:
        """One step, or sleep."""
        if not self._core.has_work:
            if until_s is not None:
                self._clock.sleep_until(until_s)
            return []
        start_s = self._clock.now()
        output = self._core.step(start_s)
        end_s = self._clock.now()
        if self._on_step is not None:
            self._on_step(output, end_s)
        return [*_admitted(output, start_s), *_tokens(output, end_s), *_ended(output.finished, end_s)]


def _admitted(output: StepOutput, t_s: float) -> Iterable[Event]:
    for entry in output.admitted:
        yield Event(request_id=entry.request_id, t_s=t_s, num_cached_tokens=entry.num_cached_tokens)


def _tokens(output: StepOutput, t_s: float) -> Iterable[Event]:
    for new in output.tokens:
        request_id, _, index = new.seq_id.rpartition("/")
        token_ids = (new.token.token_id,)
        yield Event(request_id=request_id, t_s=t_s, index=int(index), num_tokens=1, token_ids=token_ids)


def _ended(finished: Iterable[Finished], t_s: float) -> Iterable[Event]:
    for entry in finished:
        yield Event(
            request_id=entry.request_id,
            t_s=t_s,
            index=entry.index,
            end=entry.reason,
            num_preemptions=entry.num_preemptions,
            error=entry.error,
        )
