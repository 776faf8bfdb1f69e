# SPDX-License-Identifier: Apache-2.0
"""The virtual driver: every arrival gets a record, ties are fixed, time comes from the clock only."""

from __future__ import annotations

from tests.cores import make_core
from ziggurat.clock import VirtualClock
from ziggurat.scheduling.decisions import DecisionLog
from ziggurat.scheduling.driver import VirtualDriver, request_of
from ziggurat.scheduling.outputs import StepOutput
from ziggurat.scheduling.protocol import Batch, StepResult
from ziggurat.workload.records import Arrival


def arrival(name: str, t_s: float = 0.0, prompt_len: int = 5, max_new: int = 3, n: int = 1) -> Arrival:
    return Arrival(t_s=t_s, id=name, prompt_len=prompt_len, max_new=max_new, n=n)


class Ticking:
    """One second per step."""

    def __init__(self, clock: VirtualClock) -> None:
        self._clock = clock

    def run(self, batch: Batch) -> StepResult:
        from ziggurat.scheduling.null import NullExecutor

        self._clock.sleep_until(self._clock.now() + 1)
        return NullExecutor().run(batch)


def test_records_have_the_times_of_the_clock() -> None:
    clock = VirtualClock()
    core = make_core(executor=Ticking(clock), seqs=1)
    outputs: list[tuple[StepOutput, float]] = []
    driver = VirtualDriver(core, clock, on_step=lambda output, end_s: outputs.append((output, end_s)))
    a, b = driver.run([arrival("b", 0.5), arrival("a", 0.0)])
    assert (a.id, a.first_scheduled_s, a.token_times_s, a.finish_s, a.reason) == (
        "a",
        0.0,
        ((1.0, 2.0, 3.0),),
        3.0,
        "length",
    )
    assert (b.queue_s, b.ttft_s, b.finish_s) == (2.5, 3.5, 6.0)
    assert [end_s for _, end_s in outputs] == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]


def test_time_jumps_over_idle_gaps() -> None:
    clock = VirtualClock()
    (record,) = VirtualDriver(make_core(executor=Ticking(clock)), clock).run([arrival("a", 100.0)])
    assert record.ttft_s == 1.0


def test_refused_requests_have_a_record_with_the_reason() -> None:
    clock = VirtualClock()
    core = make_core(executor=Ticking(clock), max_queued_requests=1)
    records = VirtualDriver(core, clock).run([arrival("a"), arrival("b"), arrival("long", prompt_len=60)])
    assert [record.reason for record in records] == ["length", "error", "error"]
    assert "the queue holds 1" in str(records[1].error)
    assert "maximum context length" in str(records[2].error)


def test_cancellations_reach_running_and_waiting_requests() -> None:
    clock = VirtualClock()
    core = make_core(executor=Ticking(clock), seqs=1)
    arrivals = [arrival("a", max_new=9), arrival("b", max_new=9), arrival("c", max_new=2)]
    a, b, c = VirtualDriver(core, clock).run(arrivals, aborts=[(2.0, "b"), (2.0, "a"), (2.0, "nobody")])
    assert (a.reason, a.num_output_tokens, a.finish_s) == ("abort", 2, 2.0)
    assert (b.reason, b.first_scheduled_s) == ("abort", None)
    assert (c.reason, c.ttft_s) == ("length", 3.0)


def test_continuations_are_one_record() -> None:
    clock = VirtualClock()
    (record,) = VirtualDriver(make_core(executor=Ticking(clock)), clock).run([arrival("a", n=3)])
    assert record.token_times_s == ((1.0, 2.0, 3.0),) * 3
    assert (record.num_output_tokens, record.tpot_s, record.itl_s) == (9, 1.0, [1.0] * 6)


def test_equal_times_keep_the_order_of_the_trace() -> None:
    logs = []
    for names in ("ab", "ba", "ab"):
        clock, log = VirtualClock(), DecisionLog()
        VirtualDriver(make_core(executor=Ticking(clock), log=log), clock).run([arrival(name) for name in names])
        logs.append(log.digest())
    assert logs[0] == logs[2] != logs[1]


def test_requests_of_arrivals_generate_exactly_max_new() -> None:
    request = request_of(arrival("a", max_new=7, n=2), vocab_size=100)
    assert (request.params.max_tokens, request.params.n, request.params.ignore_eos) == (7, 2, True)
    assert len(request.prompt_ids) == 5
    assert all(0 <= token_id < 100 for token_id in request.prompt_ids)
