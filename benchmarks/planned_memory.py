# SPDX-License-Identifier: Apache-2.0
"""Planned against measured memory: the peak of a fresh process per case, running exactly the planned batch.

``python -m benchmarks.planned_memory [--quick] [--output FILE]`` runs every case in a child process whose memory is sampled from
outside; nothing is pre-touched, so what is measured is what the batch really used.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.report import publish
from ziggurat.memory.machine import Machine

MIB = 1024 * 1024
SHAPES: dict[str, dict[str, Any]] = {
    "4m": {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 1024,
        "tie_word_embeddings": True,
    },
    "135m": {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    },
    "mistral-window": {
        "architectures": ["MistralForCausalLM"],
        "hidden_size": 512,
        "intermediate_size": 1024,
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "vocab_size": 32000,
        "sliding_window": 512,
    },
    "qwen3-0.3b": {
        "architectures": ["Qwen3ForCausalLM"],
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 16,
        "num_attention_heads": 12,
        "num_key_value_heads": 6,
        "head_dim": 64,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
}
CONTEXTS = (256, 1024, 4096)
BATCH = {256: 8, 1024: 4, 4096: 2}
STEP_TOKENS = 256


def charged_bytes(pid: int) -> int:
    """What a process is charged for (`ProcessMemory.charged_bytes`: Pss, pages of mapped files in full); 0 once it is gone."""
    try:
        return Machine(pid=pid).process_memory().charged_bytes
    except (OSError, IndexError):
        return 0


def run_case(shape: str, context: int, kv_cache_dtype: str) -> None:
    """The child: load, run the planned batch to its full length, print what was planned."""
    from ziggurat.engine.config import EngineConfig
    from ziggurat.engine.engine import Engine
    from ziggurat.engine.types import GenerateRequest
    from ziggurat.memory.fit import SizeRequest, fit, sequence_bytes
    from ziggurat.programs.architectures import build_program
    from ziggurat.programs.formats import BF16, FORMATS
    from ziggurat.programs.lower import Formats
    from ziggurat.scheduling.sampling import SamplingParams

    batch = BATCH[context]
    raw = {"max_position_embeddings": 4096, "dtype": "bfloat16", **SHAPES[shape]}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(raw))
        kv = FORMATS["bf16" if kv_cache_dtype == "auto" else kv_cache_dtype]
        wide = fit(
            build_program(raw),
            Formats(weight=BF16, kv=kv),
            SizeRequest(
                memory_bytes=64 << 30, max_model_len=context, max_num_seqs=batch, max_num_batched_tokens=STEP_TOKENS
            ),
        )
        from ziggurat.memory.overhead import overhead_bytes

        needed = wide.plan.fixed_bytes() + overhead_bytes(Path(folder)) + batch * sequence_bytes(wide.plan, context)
        config = EngineConfig(
            model=folder,
            load_format="dummy",
            memory=int(needed / 0.97) + MIB // 4,
            max_model_len=context,
            max_num_seqs=batch,
            max_num_batched_tokens=STEP_TOKENS,
            kv_cache_dtype=kv_cache_dtype,
        )
        engine = Engine.load(config)
    memory = engine.memory()
    loaded = charged_bytes(os.getpid())
    # Enough output that the first sequence still runs when the last prompt is finished: all of the batch is there at once.
    new_tokens = batch * -(-context // STEP_TOKENS) + 8
    params = SamplingParams(temperature=0.0, max_tokens=new_tokens, ignore_eos=True)
    length = context - new_tokens
    for i in range(batch):
        prompt = [(7 * j + 13 * i) % (raw["vocab_size"] - 8) + 4 for j in range(length)]
        engine.add(GenerateRequest(request_id=f"r{i}", prompt_ids=prompt, params=params))
    largest_running = 0
    while engine.has_work:
        engine.step()
        largest_running = max(largest_running, engine.core.num_running)
    print(
        json.dumps(
            {
                "baseline_bytes": memory["baseline_bytes"],
                "planned_bytes": memory["planned_bytes"],
                "budget_bytes": memory["limits"]["ram"],
                "weight_bytes": engine.fit.plan.weight_bytes,
                "loaded_bytes": loaded,
                "batch": batch,
                "running": largest_running,
            }
        )
    )


def measure(shape: str, context: int, kv_cache_dtype: str = "auto") -> dict[str, Any]:
    """One case in a fresh process; the peak is sampled every 5 ms and read once more from the child at its end."""
    command = [sys.executable, "-m", "benchmarks.planned_memory", "--case", shape, str(context), kv_cache_dtype]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    peak = 0
    started = time.monotonic()
    while child.poll() is None:
        peak = max(peak, charged_bytes(child.pid))
        time.sleep(0.005)
    out, err = child.communicate()
    if child.returncode:
        raise RuntimeError(f"{shape} at {context}: exit {child.returncode}\n{err[-2000:]}")
    facts = json.loads(out.splitlines()[-1])
    measured = peak - facts["baseline_bytes"]
    allowed = max(facts["planned_bytes"] // 10, 32 * MIB)
    difference = abs(measured - facts["planned_bytes"])
    return {
        "shape": shape,
        "context_tokens": context,
        "kv_cache_dtype": kv_cache_dtype,
        **facts,
        "peak_bytes": peak,
        "measured_bytes": measured,
        "difference_bytes": difference,
        "allowed_bytes": allowed,
        "is_within": difference <= allowed,
        "is_inside_budget": measured <= facts["budget_bytes"],
        "wall_s": round(time.monotonic() - started, 1),
    }


def main() -> int:
    """Run the cases; exit 1 if any is out of bounds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="the two small shapes and contexts only")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    if args.case:
        run_case(args.case[0], int(args.case[1]), args.case[2])
        return 0
    rows = []
    for shape in list(SHAPES)[: 2 if args.quick else None]:
        for context in CONTEXTS[: 2 if args.quick else None]:
            row = measure(shape, context)
            rows.append(row)
            print(
                f"{shape:>15} {context:5d}: planned {row['planned_bytes'] / MIB:8.1f} MiB, measured "
                f"{row['measured_bytes'] / MIB:8.1f} MiB, off by {row['difference_bytes'] / MIB:6.1f} of "
                f"{row['allowed_bytes'] / MIB:6.1f} allowed, {'ok' if row['is_within'] else 'OUT'} ({row['wall_s']} s)",
                file=sys.stderr,
                flush=True,
            )
    publish("python -m benchmarks.planned_memory", args.output, rows=rows)
    return 0 if all(row["is_within"] and row["is_inside_budget"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
