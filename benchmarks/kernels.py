# SPDX-License-Identifier: Apache-2.0
"""Native kernels beside torch doing the same work, interleaved, median of several rounds: ``make bench``, some forty seconds.

The bytes of a linear are those of its weights as stored; its operations are 2 T K N. Weights rotate through a set larger than the
last-level cache, as the layers of a model do.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from ziggurat import kernels

ROUNDS = 7
WEIGHT_SET_BYTES = 128 << 20


def median_s(calls: list[Callable[[], None]], budget_s: float = 0.15) -> list[float]:
    """Median seconds per call of each, interleaved; every round repeats a call until the budget is spent."""
    samples: list[list[float]] = [[] for _ in calls]
    for call in calls:
        call()
    for _ in range(ROUNDS):
        for index, call in enumerate(calls):
            count, start = 0, time.perf_counter()
            while (elapsed := time.perf_counter() - start) < budget_s:
                call()
                count += 1
            samples[index].append(elapsed / count)
    return [statistics.median(sample) for sample in samples]


def linear_row(num_rows: int, k: int, n: int) -> dict[str, Any]:
    """bf16 panels against ``torch.mm`` in fp32 and in bf16."""
    ops = kernels.select("native")
    count = max(1, WEIGHT_SET_BYTES // (k * n * 4))
    weight = torch.randn(n, k).bfloat16()
    panels = torch.zeros(count, -(-n // 16), k, 16, dtype=torch.bfloat16)
    for each in panels:
        ops.pack_rows(weight, each)
    dense = weight.float().T.contiguous().expand(count, k, n).clone()
    half = weight.T.contiguous().expand(count, k, n).clone()
    x, out = torch.randn(num_rows, k), torch.empty(num_rows, n)
    turn = [0, 0, 0]

    def step(which: int) -> int:
        turn[which] = (turn[which] + 1) % count
        return turn[which]

    native_s, fp32_s, bf16_s = median_s(
        [
            lambda: ops.linear(x, panels[step(0)], out),
            lambda: _drop(torch.mm(x, dense[step(1)], out=out)),
            lambda: _drop(torch.mm(x.bfloat16(), half[step(2)])),
        ]
    )
    flops = 2 * num_rows * k * n
    return {
        "op": "linear",
        "rows": num_rows,
        "k": k,
        "n": n,
        "native_us": native_s * 1e6,
        "native_gb_per_s": 2 * k * n / native_s / 1e9,
        "native_gflop_per_s": flops / native_s / 1e9,
        "torch_fp32_us": fp32_s * 1e6,
        "torch_fp32_gflop_per_s": flops / fp32_s / 1e9,
        "torch_bf16_us": bf16_s * 1e6,
    }


def experts_row(num_tokens: int, k: int, n: int, num_experts: int, top_k: int) -> dict[str, Any]:
    """bf16 panels of all experts against a loop over the chosen ones with ``torch.mm`` in bf16, as transformers has it; even routing."""
    ops = kernels.select("native")
    panels = torch.randn(num_experts * n // 16, k, 16).bfloat16()
    dense = torch.randn(num_experts, k, n).bfloat16()
    chosen = torch.arange(num_tokens * top_k).view(num_tokens, top_k) % num_experts
    routing = torch.cat((chosen.float(), torch.full((num_tokens, top_k), 1.0 / top_k)), 1)
    x, out = torch.randn(num_tokens, k), torch.empty(num_tokens * top_k, n)

    def loop() -> None:
        for expert in chosen.unique().tolist():
            torch.mm(x[torch.where(chosen == expert)[0]].bfloat16(), dense[expert])

    native_s, bf16_s = median_s(
        [
            lambda: ops.grouped_linear(x, panels, routing, out, num_experts=num_experts, top_k=top_k, is_routed=False),
            loop,
        ]
    )
    return {
        "op": f"grouped_linear {num_experts} experts top {top_k}",
        "rows": num_tokens,
        "k": k,
        "n": n,
        "native_us": native_s * 1e6,
        "native_gflop_per_s": 2 * num_tokens * top_k * k * n / native_s / 1e9,
        "torch_bf16_us": bf16_s * 1e6,
    }


def _drop(_: torch.Tensor) -> None:
    return None


def main() -> None:
    """Prints one line per case, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--format", choices=("text", "json"), default="text")
    parser.add_argument("--rows", type=int, nargs="*", default=[1, 4, 16, 256])
    parser.add_argument("--shape", type=int, nargs=2, action="append", metavar=("K", "N"))
    parser.add_argument("--threads", type=int, help="of both; default: all cores")
    args = parser.parse_args()
    kernels.select("native", num_threads=args.threads)
    about = kernels.describe("native")
    torch.set_num_threads(int(about["threads"]))
    rows = [linear_row(t, k, n) for k, n in args.shape or [(2048, 2048), (576, 1536)] for t in args.rows]
    rows += [experts_row(t, 1024, 1408, 8, 2) for t in args.rows]
    if args.format == "json":
        print(json.dumps({"rows": rows, "machine": {"cpu": platform.processor() or platform.machine(), **about}}))
        return
    print(f"{about['isa']}, {about['threads']} threads")
    for row in rows:
        print(
            "  ".join(
                f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()
            )
        )


if __name__ == "__main__":
    main()
