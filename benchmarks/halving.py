# SPDX-License-Identifier: Apache-2.0
"""The budget halved under load: how soon the process is below it, whether anybody is lost, and what the next minute is like.

    python -m benchmarks.halving            # five minutes

A model of 26M random parameters; 24 clients, each with one request after the other, whose KV needs most of the larger budget. Compared is
the 99th percentile of the time between tokens with an engine that was started at the smaller budget, under the same load for as long.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.report import publish
from ziggurat.catalog.engine_rig import LLAMA_26M
from ziggurat.engine.config import EngineConfig
from ziggurat.engine.engine import Engine
from ziggurat.engine.types import GenerateRequest
from ziggurat.scheduling.sampling import SamplingParams

NUM_CLIENTS, BEFORE_S, AFTER_S = 24, 20.0, 60.0
LARGE, SMALL = 256 << 20, 128 << 20


class Load:
    """Clients in a closed loop; gaps between tokens with the time at which each ended."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._noise = engine, random.Random(3)
        self._last_s: dict[str, float] = {}
        self.gaps: list[tuple[float, float]] = []
        self.num_started = self.num_ended = self.num_failed = 0
        for _ in range(NUM_CLIENTS):
            self._start()

    def _start(self) -> None:
        self.num_started += 1
        prompt = [self._noise.randrange(5, 4000) for _ in range(self._noise.randint(200, 900))]
        params = SamplingParams(max_tokens=self._noise.randint(100, 300), ignore_eos=True)
        self._engine.add(GenerateRequest(request_id=str(self.num_started), prompt_ids=prompt, params=params))

    def step(self, *, is_refilled: bool = True) -> None:
        """One step of the engine; who has ended is followed by the client's next request."""
        outputs = self._engine.step()
        now_s = time.monotonic()
        for output in outputs:
            if output.tokens:
                last_s = self._last_s.get(output.request_id)
                if last_s is not None:
                    self.gaps.append((now_s, now_s - last_s))
                self._last_s[output.request_id] = now_s
            if output.finish_reason is not None:
                self._last_s.pop(output.request_id, None)
                self.num_ended += 1
                self.num_failed += output.finish_reason != "length"
                if is_refilled:
                    self._start()

    def run(self, duration_s: float, watch: Callable[[float], None] = lambda _: None) -> None:
        """Step for so long; ``watch`` sees the seconds since the start."""
        started_s = time.monotonic()
        while (elapsed_s := time.monotonic() - started_s) < duration_s:
            self.step()
            watch(elapsed_s)

    def drain(self) -> None:
        """Let everybody end."""
        while self._engine.has_work:
            self.step(is_refilled=False)


def p99_ms(gaps: list[tuple[float, float]], since_s: float) -> float:
    """Of gaps that ended after a time."""
    return 1000 * statistics.quantiles([gap for end_s, gap in gaps if end_s >= since_s], n=100)[98]


def load_engine(folder: Path, memory: int) -> Engine:
    """With a swap space, so that nobody computes twice."""
    return Engine.load(
        EngineConfig(
            model=str(folder),
            load_format="dummy",
            memory=memory,
            max_model_len=1280,
            max_num_seqs=NUM_CLIENTS,
            swap_space="1GiB",
        )
    )


def halved(folder: Path) -> dict[str, Any]:
    """The engine whose budget changes."""
    with load_engine(folder, LARGE) as engine:
        load = Load(engine)
        load.run(BEFORE_S)
        above: list[tuple[float, int]] = []

        def watch(elapsed_s: float) -> None:
            if elapsed_s <= 10 and (not above or elapsed_s - above[-1][0] >= 0.1):
                process = engine.machine.process_memory()
                # The swap space is a tier of its own, beside the budget.
                swap = 0 if engine.resources.swap is None else engine.resources.swap.resident_bytes()
                above.append((elapsed_s, process.charged_bytes - engine.resources.baseline_bytes - swap))

        started_s = time.monotonic()
        change = engine.set_memory(SMALL)
        changing_s = time.monotonic() - started_s
        load.run(AFTER_S, watch)
        load.drain()
        below_s = next((elapsed_s for elapsed_s, num_bytes in above if num_bytes <= SMALL), None)
        return {
            "p99_itl_ms": p99_ms(load.gaps, started_s),
            "changing_s": changing_s,
            "below_new_budget_after_s": below_s,
            "above_baseline_bytes_at_once": above[0][1],
            "num_preempted": change.num_preempted,
            "num_evicted_blocks": change.num_evicted_blocks,
            "num_requests": load.num_started,
            "num_lost": load.num_started - load.num_ended + load.num_failed,
        }


def small_from_the_start(folder: Path) -> float:
    """The same load on the smaller budget: p99 of as long a time, after as long a warm-up."""
    with load_engine(folder, SMALL) as engine:
        load = Load(engine)
        load.run(BEFORE_S)
        since_s = time.monotonic()
        load.run(AFTER_S)
        load.drain()
        return p99_ms(load.gaps, since_s)


def main() -> int:
    """Print the report, or write it to a file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--output", type=Path, default=None)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        (Path(temporary) / "config.json").write_text(json.dumps(dict(LLAMA_26M)))
        found = halved(Path(temporary))
        print(json.dumps(found), file=sys.stderr)
        small_ms = small_from_the_start(Path(temporary))
    publish(
        "python -m benchmarks.halving",
        asked.output,
        large_bytes=LARGE,
        small_bytes=SMALL,
        **found,
        p99_itl_ms_started_small=small_ms,
        p99_ratio=found["p99_itl_ms"] / small_ms,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
