# SPDX-License-Identifier: Apache-2.0
"""Does the budget hold? Twenty random loads in fresh processes, and the peak of loading a real checkpoint.

``python -m benchmarks.budget_runs [--runs 20] [--output FILE]``: each run draws a budget, limits, a KV format and a stream of
requests of random lengths with aborts; its memory (Pss, pages of mapped files in full) is sampled from outside, loading included, and
must stay below baseline + budget.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.planned_memory import MIB, SHAPES, charged_bytes
from benchmarks.report import publish


def run_load(seed: int) -> None:
    """The child: a random engine under a random load."""
    from ziggurat.engine.config import EngineConfig
    from ziggurat.engine.engine import Engine
    from ziggurat.engine.types import GenerateRequest
    from ziggurat.errors import RequestError
    from ziggurat.scheduling.sampling import SamplingParams

    rng = random.Random(seed)
    shape = rng.choice(["4m", "mistral-window"])
    # From just above the least that works, where sequences preempt each other, to room for all of them.
    budget = {"4m": rng.randrange(36, 72), "mistral-window": rng.randrange(150, 200)}[shape] * MIB
    with tempfile.TemporaryDirectory() as folder:
        raw = {"max_position_embeddings": 4096, "dtype": "bfloat16", **SHAPES[shape]}
        Path(folder, "config.json").write_text(json.dumps(raw))
        engine = Engine.load(
            EngineConfig(
                model=folder,
                load_format="dummy",
                memory=budget,
                kv_cache_dtype=rng.choice(["auto", "fp32", "bf16"]),
                block_size=rng.choice([8, 16, 32]),
                planner=rng.choice(["sarathi", "prefill-priority"]),
            )
        )
    limit = engine.model.max_model_len
    print(json.dumps({"baseline_bytes": engine.memory()["baseline_bytes"], "budget_bytes": budget}), flush=True)
    until = time.monotonic() + 12
    count = refused = 0
    while time.monotonic() < until or engine.has_work:
        if time.monotonic() < until and rng.random() < 0.3:
            length = min(limit - 1, int(rng.paretovariate(0.7) * 20))
            params = SamplingParams(
                n=rng.choice([1, 1, 2]),
                temperature=0.8,
                max_tokens=min(limit - length, rng.randrange(1, 40)),
                ignore_eos=True,
            )
            prompt = [rng.randrange(4, raw["vocab_size"]) for _ in range(length)]
            try:
                engine.add(GenerateRequest(request_id=f"r{count}", prompt_ids=prompt, params=params))
            except RequestError:  # a full queue is part of the load
                refused += 1
            count += 1
        if rng.random() < 0.02 and count:
            engine.abort(f"r{rng.randrange(count)}")
        engine.step()
    stats = engine.stats()
    engine.close()
    print(
        json.dumps(
            {"shape": shape, "requests": count, "refused": refused, "preemptions": stats["num_preemptions_total"]}
        ),
        flush=True,
    )


def run_loading(folder: str) -> None:
    """The child: load a checkpoint from disk."""
    from ziggurat.engine.config import EngineConfig
    from ziggurat.engine.engine import Engine

    engine = Engine.load(EngineConfig(model=folder, memory="1GiB", max_model_len=256, max_num_seqs=1))
    print(
        json.dumps({"baseline_bytes": engine.memory()["baseline_bytes"], "weight_bytes": engine.fit.plan.weight_bytes}),
        flush=True,
    )


def watch(*arguments: str) -> tuple[int, list[dict[str, Any]]]:
    """Peak memory of a child and the JSON lines that it printed."""
    command = [sys.executable, "-m", "benchmarks.budget_runs", *arguments]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peak = 0
    while child.poll() is None:
        peak = max(peak, charged_bytes(child.pid))
        time.sleep(0.005)
    out, _ = child.communicate()
    if child.returncode:
        raise RuntimeError(f"{' '.join(arguments)}: exit {child.returncode}")
    return peak, [json.loads(line) for line in out.splitlines()]


def write_checkpoint(folder: Path) -> None:
    """The 135m shape with random bf16 weights in two shards."""
    import torch
    from safetensors.torch import save_file

    from ziggurat.programs.architectures import build_program

    raw = {"max_position_embeddings": 4096, "dtype": "bfloat16", **SHAPES["135m"]}
    (folder / "config.json").write_text(json.dumps(raw))
    tensors = {
        name: torch.randn(spec.shape).to(torch.bfloat16)
        for name, spec in build_program(raw).weights.items()
        if spec.tied_to is None
    }
    names = list(tensors)
    parts = {"a.safetensors": names[: len(names) // 2], "b.safetensors": names[len(names) // 2 :]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, folder / file)
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def main() -> int:
    """All runs; exit 1 if any left its bounds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--load", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--loading", help=argparse.SUPPRESS)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    if args.load is not None:
        run_load(args.load)
        return 0
    if args.loading:
        run_loading(args.loading)
        return 0
    rows = []
    for seed in range(args.runs):
        peak, lines = watch("--load", str(seed))
        facts = {**lines[0], **lines[-1]}
        above = peak - facts["baseline_bytes"]
        rows.append({"seed": seed, **facts, "above_baseline_bytes": above, "is_inside": above <= facts["budget_bytes"]})
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(Path(folder))
        peak, (facts,) = watch("--loading", folder)
    above = peak - facts["baseline_bytes"]
    allowed = facts["weight_bytes"] + max(int(facts["weight_bytes"] * 0.15), 64 * MIB)
    loading = {**facts, "peak_above_baseline_bytes": above, "allowed_bytes": allowed, "is_within": above <= allowed}
    print(json.dumps(loading), file=sys.stderr)
    publish("python -m benchmarks.budget_runs", args.output, runs=rows, loading=loading)
    return 0 if all(row["is_inside"] for row in rows) and loading["is_within"] else 1


if __name__ == "__main__":
    sys.exit(main())
