# SPDX-License-Identifier: Apache-2.0
"""Conversations whose KV needs four times the pool: with room for all, with copies in RAM, and computed again.

``python -m benchmarks.conversations [--sessions 200] [--rounds 3] [--output FILE]``: a model of 26M random parameters, five turns each,
100 tokens said and 40 answered per turn; everybody takes a turn before anybody takes the next, so that least recently used is always the
wrong prefix to lose. The engines take turns, each in a process of its own (an engine watches the memory of its process); texts must be the
same. ``ratio`` is tokens/s over the roomy engine's.
"""

from __future__ import annotations

import argparse
import random
import statistics
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.report import publish
from ziggurat.catalog.batch_rig import BatchRig
from ziggurat.catalog.engine_rig import LLAMA_26M

TURNS, SAID, ANSWERED = 5, 100, 40
WAYS: dict[str, dict[str, Any]] = {
    "roomy": {},
    "swap": {"swap_space": "4GiB", "preemption_mode": "auto"},
    "recompute": {"preemption_mode": "recompute"},
}


_rig: BatchRig | None = None


def _load(pool_tokens: int, more: dict[str, Any]) -> None:
    global _rig  # one engine per process
    _rig = BatchRig(LLAMA_26M, pool_tokens, **more)


def _converse(words: list[list[tuple[int, ...]]]) -> Any:
    assert _rig is not None
    return _rig.run_conversations(words, ANSWERED)


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sessions", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    rng = random.Random(4)
    vocab = int(LLAMA_26M["vocab_size"])
    words = [[tuple(rng.randrange(5, vocab) for _ in range(SAID)) for _ in range(TURNS)] for _ in range(args.sessions)]
    needed = args.sessions * TURNS * (SAID + ANSWERED)
    pools = {name: int(1.1 * needed) if name == "roomy" else needed // 4 for name in WAYS}
    context = get_context("spawn")
    rigs = {
        name: ProcessPoolExecutor(1, context, initializer=_load, initargs=(size, WAYS[name]))
        for name, size in pools.items()
    }
    runs: dict[str, list[Any]] = {name: [] for name in WAYS}
    for _ in range(args.rounds):
        for name, rig in rigs.items():
            runs[name].append(rig.submit(_converse, words).result())
            print(name, f"{runs[name][-1].tokens_per_s:.0f} tokens/s", flush=True)
    texts, rows = runs["roomy"][0].texts, []
    for name, rig in rigs.items():
        ratios = [run.tokens_per_s / base.tokens_per_s for run, base in zip(runs[name], runs["roomy"], strict=True)]
        rows.append(
            {
                "engine": name,
                "pool_tokens": pools[name],
                "needed_tokens": needed,
                "tokens_per_s": round(statistics.median(run.tokens_per_s for run in runs[name]), 1),
                "ratio": round(statistics.median(ratios), 3),
                "is_identical": all(run.texts == texts for run in runs[name]),
                "prompt_tokens": runs[name][0].prompt_tokens,
                "computed_prompt_tokens": runs[name][0].computed_prompt_tokens,
            }
        )
        rig.shutdown()
    publish("python -m benchmarks.conversations", args.output, rounds=args.rounds, sessions=args.sessions, rows=rows)


if __name__ == "__main__":
    main()
