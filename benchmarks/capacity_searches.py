# SPDX-License-Identifier: Apache-2.0
"""How much a capacity search varies when it is repeated: five searches of `bench sweep`, run by run in turn, on one engine.

    python -m benchmarks.capacity_searches            # twenty minutes

A machine whose speed moves by a tenth from minute to minute moves the capacity by as much, and searches one after another then differ by
what the machine did. Taken in turn, all of them see the same machine, and what is left is the search's own. That is how searches are to be
compared that are meant to show a difference (two planners, say).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import threading
from pathlib import Path
from typing import Any

from benchmarks.report import publish
from ziggurat.cli.bench.requests import WorkloadOptions
from ziggurat.cli.bench.sweep import SweepOptions
from ziggurat.cli.bench.sweep import parser as sweep_parser
from ziggurat.cli.bench.target import Target, open_target
from ziggurat.workload.arrivals import at_rate
from ziggurat.workload.capacity import Capacity, refine_capacity, search_capacity
from ziggurat.workload.metrics import Attainment, attainment
from ziggurat.workload.replay import replay
from ziggurat.workload.sources import OpenLoop

NUM_SEARCHES = 5
WORKLOAD = WorkloadOptions(num_prompts=200, random_input_len=512, random_output_len=64)
SEARCH = SweepOptions(start_rate=20.0, refine=16)


class Turns:
    """Lets one of several threads run at a time, each one run, then the next; who has ended is passed over."""

    def __init__(self, count: int) -> None:
        self._changed = threading.Condition()
        self._waiting = list(range(count))
        self._now = 0

    def take(self, number: int) -> None:
        """Wait for this one's turn."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting[self._now] == number)

    def give(self, number: int, *, is_last: bool = False) -> None:
        """The next one's turn."""
        with self._changed:
            place = self._waiting.index(number)
            if is_last:
                self._waiting.pop(place)
                place -= 1
            if self._waiting:
                self._now = (place + 1) % len(self._waiting)
            self._changed.notify_all()


def search_all(target: Target, count: int) -> list[Capacity]:
    """The searches, in turn."""
    arrivals, limits, turns = WORKLOAD.arrivals(target.max_model_len), SEARCH.limits(), Turns(count)
    found: dict[int, Capacity] = {}
    runs = iter(range(1, 10**6))

    def search(number: int) -> None:
        def run(rate: float) -> Attainment:
            turns.take(number)
            records = replay(OpenLoop(at_rate(arrivals, rate)), target.client(run=next(runs))).records
            result = attainment(records, limits)
            print(
                f"search {number}: {rate:.4g}: {'met' if result.is_met else 'not met'}: {result.explain()}",
                file=sys.stderr,
            )
            turns.give(number)
            return result

        first = search_capacity(run, start_rate=SEARCH.start_rate, granularity=SEARCH.granularity)
        found[number] = refine_capacity(run, first, num_runs=SEARCH.refine, granularity=SEARCH.granularity)
        turns.take(number)
        turns.give(number, is_last=True)

    threads = [threading.Thread(target=search, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[number] for number in range(count)]


def summary(found: list[Capacity]) -> dict[str, Any]:
    """How far the answers lie apart."""
    rates = [each.rate for each in found]
    middle = statistics.median(rates)
    return {
        "capacities_requests_per_s": rates,
        "median": middle,
        "largest_deviation_from_median": max(abs(rate / middle - 1) for rate in rates),
        "largest_over_smallest": max(rates) / min(rates) - 1,
        "num_runs": [len(each.runs) for each in found],
    }


def main() -> int:
    """Print the report, or write it to a file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--searches", type=int, default=NUM_SEARCHES)
    parser.add_argument("--output", type=Path, default=None)
    asked = parser.parse_args()
    with open_target(sweep_parser().parse([]), num_requests=WORKLOAD.num_prompts) as target:
        replay(OpenLoop(at_rate(WORKLOAD.arrivals(target.max_model_len)[:1], float("inf"))), target.client(run=0))
        found = search_all(target, asked.searches)
    publish(
        "python -m benchmarks.capacity_searches",
        asked.output,
        what="capacity searches taken in turn, the embedded model, 512 prompt and 64 output tokens, 200 requests a run",
        limits=SEARCH.limits(),
        refine=SEARCH.refine,
        **summary(found),
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
