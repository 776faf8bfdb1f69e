# SPDX-License-Identifier: Apache-2.0
"""An engine in this process as the client of a replay, on the engine's own clock: real tokens, no sockets, one thread."""

from __future__ import annotations

from collections.abc import Callable

from ziggurat.clock import Clock, WallClock
from ziggurat.engine.interface import EngineInterface
from ziggurat.engine.types import GenerateOutput, GenerateRequest
from ziggurat.scheduling.sampling import SamplingParams
from ziggurat.workload.records import Arrival
from ziggurat.workload.replay import Event


class EngineClient:
    """Steps an engine between two sends. Requests are greedy and generate exactly what the arrival asks for.

    Args:
        clock: the engine's own.
        salt: requests of clients with different salts share no prefix, so that a second run finds nothing cached by the first.
        on_step: called after each step with its duration in seconds.
    """

    def __init__(
        self,
        engine: EngineInterface,
        *,
        clock: Clock | None = None,
        salt: str = "",
        on_step: Callable[[float], None] | None = None,
    ) -> None:
        self._engine = engine
        self._clock = clock or WallClock()
        self._salt = salt
        self._on_step = on_step
        self._late_s: dict[str, float] = {}

    def now(self) -> float:
        """See `ziggurat.workload.replay.Client.now`."""
        return self._clock.now()

    def submit(self, arrival: Arrival, due_s: float) -> None:
        """See `ziggurat.workload.replay.Client.submit`."""
        params = SamplingParams(n=arrival.n, max_tokens=arrival.max_new, ignore_eos=True, temperature=0)
        prompt_ids = arrival.prompt(self._engine.model.vocab_size)
        request = GenerateRequest(
            request_id=arrival.id,
            prompt_ids=prompt_ids,
            params=params,
            priority=arrival.priority,
            cache_salt=self._salt,
        )
        late_s = self._clock.now() - due_s
        self._engine.add(request)
        # The engine counts the wait from now on; what the sender was late by is added.
        self._late_s[arrival.id] = late_s

    def poll(self, until_s: float | None) -> list[Event]:
        """One step, or sleep."""
        if not self._engine.has_work:
            if until_s is not None:
                self._clock.sleep_until(until_s)
            return []
        start_s = self._clock.now()
        outputs = self._engine.step()
        end_s = self._clock.now()
        if self._on_step is not None:
            self._on_step(end_s - start_s)
        return [self._event(output, end_s) for output in outputs]

    def _event(self, output: GenerateOutput, t_s: float) -> Event:
        late_s = None
        if output.queue_s is not None:
            late_s = self._late_s.pop(output.request_id, None)
        return Event(
            request_id=output.request_id,
            t_s=t_s,
            index=output.index,
            num_tokens=len(output.tokens),
            token_ids=tuple(token.token_id for token in output.tokens),
            num_cached_tokens=None if late_s is None else output.num_cached_tokens,
            queue_s=None if late_s is None or output.queue_s is None else late_s + output.queue_s,
            end=output.finish_reason,
            error=output.error,
        )
