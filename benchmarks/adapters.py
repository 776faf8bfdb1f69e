# SPDX-License-Identifier: Apache-2.0
"""What LoRA adapters cost: the same requests on the base model and with an adapter each, in one engine, in turn.

    python -m benchmarks.adapters            # 2,000 adapters known, 64 in use, batch 64; five minutes

The 135M shape in bf16 with random weights; adapters of q, k, v and o in bf16 with ranks uniform in 4..64. Folders share files (hard links),
names do not; each of the adapters in use has numbers of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.report import publish
from benchmarks.streaming import SHAPES, write_config
from ziggurat.engine.config import EngineConfig
from ziggurat.engine.engine import Engine
from ziggurat.engine.types import GenerateRequest
from ziggurat.scheduling.sampling import SamplingParams

NUM_KNOWN, NUM_ACTIVE, NUM_TURNS = 2000, 64, 5
PROMPT_TOKENS, OUTPUT_TOKENS = 32, 64


def write_adapters(folder: Path, count: int, num_files: int) -> list[Path]:
    """Folders of adapters for the 135M shape; the first ``num_files`` have files of their own."""
    shape, noise = SHAPES["135m"], random.Random(1)
    hidden, heads = shape["hidden_size"], shape["num_attention_heads"]
    kv = hidden // heads * shape["num_key_value_heads"]
    outs = {"q_proj": hidden, "k_proj": kv, "v_proj": kv, "o_proj": hidden}
    folders: list[Path] = []
    for number in range(count):
        path = folder / f"adapter-{number:04d}"
        path.mkdir(parents=True)
        folders.append(path)
        if number >= num_files:
            for name in ("adapter_config.json", "adapter_model.safetensors"):
                os.link(folders[number % num_files] / name, path / name)
            continue
        rank = noise.randint(4, 64)
        tensors = {}
        for layer in range(shape["num_hidden_layers"]):
            for target, out in outs.items():
                module = f"base_model.model.model.layers.{layer}.self_attn.{target}"
                tensors[f"{module}.lora_A.weight"] = torch.randn(rank, hidden).mul_(hidden**-0.5).bfloat16()
                tensors[f"{module}.lora_B.weight"] = torch.randn(out, rank).mul_(0.01).bfloat16()
        save_file(tensors, path / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": list(outs), "bias": "none"}
        (path / "adapter_config.json").write_text(json.dumps(config))
    return folders


def serve(engine: Engine, names: list[str], turn: str) -> float:
    """Seconds for one request per name, all at once."""
    for number, name in enumerate(names):
        prompt = [1 + (number * 131 + 7 * place) % 40000 for place in range(PROMPT_TOKENS)]
        params = SamplingParams(max_tokens=OUTPUT_TOKENS, ignore_eos=True)
        engine.add(GenerateRequest(request_id=f"{turn}/{number}", prompt_ids=prompt, params=params, adapter=name))
    started_s = time.perf_counter()
    while engine.has_work:
        for output in engine.step():
            if output.error is not None:
                raise SystemExit(output.error)
    elapsed_s = time.perf_counter() - started_s
    engine.reset_prefix_cache()
    return elapsed_s


def measure(engine: Engine, active: list[str], turns: int) -> dict[str, Any]:
    """Tokens per second of both, turn by turn."""
    base_s, adapted_s = [], []
    serve(engine, active, "warm-up")
    serve(engine, [""] * len(active), "warm-up base")
    for turn in range(turns):
        base_s.append(serve(engine, [""] * len(active), f"base {turn}"))
        adapted_s.append(serve(engine, active, f"adapted {turn}"))
        print(f"turn {turn + 1}: base {base_s[-1]:.2f} s, adapters {adapted_s[-1]:.2f} s", file=sys.stderr)
    tokens = len(active) * OUTPUT_TOKENS
    ratios = [base / adapted for base, adapted in zip(base_s, adapted_s, strict=True)]
    return {
        "base_tokens_per_s": tokens / statistics.median(base_s),
        "adapters_tokens_per_s": tokens / statistics.median(adapted_s),
        "throughput_ratio": statistics.median(ratios),
        "throughput_ratio_by_turn": ratios,
    }


def main() -> int:
    """Print the report, or write it to a file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--known", type=int, default=NUM_KNOWN)
    parser.add_argument("--active", type=int, default=NUM_ACTIVE)
    parser.add_argument("--turns", type=int, default=NUM_TURNS)
    parser.add_argument("--quantization", default="none")
    parser.add_argument("--output", type=Path, default=None)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        folders = write_adapters(folder / "adapters", asked.known, min(asked.known, asked.active))
        config = EngineConfig(
            model=str(write_config(folder / "model", "135m")),
            load_format="dummy",
            quantization=asked.quantization,
            memory="3GiB",
            max_model_len=256,
            max_num_seqs=asked.active,
            max_num_batched_tokens=max(256, asked.active + 1),
        )
        with Engine.load(config) as engine:
            started_s = time.perf_counter()
            for each in folders:
                engine.load_lora(each.name, each)
            registering_s = time.perf_counter() - started_s
            active = [each.name for each in folders[: asked.active]]
            found = measure(engine, active, asked.turns)
            rows = [row for row in engine.adapters.report() if row["is_loaded"]]
            block = engine.fit.plan.block_bytes(engine.fit.plan.program.kv_groups()[0])
    publish(
        "python -m benchmarks.adapters",
        asked.output,
        num_known=len(folders),
        num_active=len(active),
        quantization=asked.quantization,
        mean_rank=statistics.mean(int(row["rank"]) for row in rows),
        adapter_bytes=sum(int(row["num_bytes"]) for row in rows),
        block_bytes_taken=sum(int(row["num_blocks"]) for row in rows) * block,
        registering_s=registering_s,
        **found,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
