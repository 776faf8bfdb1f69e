# SPDX-License-Identifier: Apache-2.0
"""Evaluates an exported model on the retrieval tasks and writes a dated results file.

`python -m ziggurat.training.results MODEL_FOLDER --output results/embedded-model-DATE.json [--items 1000] [--lengths 512 2048 4096]`
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ziggurat.clock import WallClock
from ziggurat.training.evaluate import EVALUATION_SEED, evaluate_task, held_out_loss
from ziggurat.training.export import load_exported
from ziggurat.workload.tasks.retrieval import TASKS

DEFAULT_LENGTHS = (128, 512, 1024, 2048, 4096)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationPlan:
    """What is evaluated.

    Attributes:
        first_item: items before it are left out, so that a long evaluation can be done in parts.
        precision: of the matrix products, `fp32` or `bf16`; the stored weights are bf16 in both cases.
    """

    tasks: tuple[str, ...]
    lengths: tuple[int, ...]
    num_items: int
    first_item: int = 0
    precision: str = "fp32"


def evaluate_folder(folder: Path, plan: EvaluationPlan, output: Path | None = None) -> dict[str, Any]:
    """Accuracy of every task at every length, and held-out text loss; `output` is rewritten after each row."""
    model, tokenizer = load_exported(folder)
    losses = held_out_loss(model, tokenizer)
    data = _header(plan, losses)
    clock = WallClock()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=plan.precision == "bf16"):
        for length, task in itertools.product(plan.lengths, plan.tasks):
            started_s = clock.now()
            row = evaluate_task(model, tokenizer, task, length, plan.num_items, first_item=plan.first_item).as_dict()
            row["seconds"] = round(clock.now() - started_s, 1)
            data["rows"].append(row)
            print(json.dumps(row), file=sys.stderr, flush=True)
            if output is not None:
                output.parent.mkdir(parents=True, exist_ok=True)
                output.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    return data


def _header(plan: EvaluationPlan, losses: dict[str, float]) -> dict[str, Any]:
    return {
        "what": "retrieval accuracy of the embedded model on held-out items",
        "kind": "measured",
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "commit": commit(),
        "machine": machine(),
        "command": "python -m ziggurat.training.results MODEL_FOLDER",
        "plan": dataclasses.asdict(plan),
        "seed": EVALUATION_SEED,
        "rule": "an item counts only if greedy decoding gives every token of its answer; one question per context",
        "held_out_loss_nats_per_token": {name: round(loss, 5) for name, loss in losses.items()},
        "held_out_perplexity": {name: round(math.exp(loss), 4) for name, loss in losses.items()},
        "rows": [],
    }


def machine() -> dict[str, Any]:
    """The machine in the words of a results file."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        name = names[0] if names else name
    return {
        "cpu": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def commit() -> str:
    """The commit of the working tree the package is run from, or `unknown` outside of one."""
    folder = Path(__file__).parent
    done = subprocess.run(["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else "unknown"


def main() -> int:
    """Command line of this module."""
    parser = argparse.ArgumentParser(
        prog="python -m ziggurat.training.results", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("folder", type=Path, help="exported model")
    parser.add_argument("--output", type=Path, default=None, help="results file (JSON)")
    parser.add_argument("--items", type=int, default=1000, help="items per task and length")
    parser.add_argument("--tasks", nargs="+", default=TASKS.names(), choices=TASKS.names())
    parser.add_argument("--lengths", nargs="+", type=int, default=list(DEFAULT_LENGTHS), help="tokens")
    parser.add_argument("--first-item", type=int, default=0, help="number of the first item")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of the matrix products")
    arguments = parser.parse_args()
    plan = EvaluationPlan(
        tasks=tuple(arguments.tasks),
        lengths=tuple(arguments.lengths),
        num_items=arguments.items,
        first_item=arguments.first_item,
        precision=arguments.precision,
    )
    evaluate_folder(arguments.folder, plan, arguments.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
