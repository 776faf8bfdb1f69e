# SPDX-License-Identifier: Apache-2.0
"""A model larger than its budget against the disk it is read from: decode steps, and plain direct reads of as many bytes, in turn.

    python -m benchmarks.streaming            # the 1.2B shape in bf16 within 1 GiB; ten minutes, needs 3 GB of disk

What counts is the ratio of the bytes that a step reads per second to what the same file gives to reads of the same size by the same
number of requests, with nothing computed. Steps and reads take turns, so that a change of the disk's speed falls on both.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.report import publish
from ziggurat.engine.config import EngineConfig
from ziggurat.engine.engine import Engine
from ziggurat.engine.types import GenerateRequest
from ziggurat.memory.arena import Arena
from ziggurat.memory.tiers.direct_file import DirectFile, ReadRequests
from ziggurat.scheduling.sampling import SamplingParams
from ziggurat.units import parse_size

SHAPES: dict[str, dict[str, Any]] = {
    "1.2b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "vocab_size": 128256,
    },
    "135m": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
    },
}
NUM_TURNS = 5
STEPS_PER_TURN = 3
CONTEXT = 512


def write_config(folder: Path, shape: str) -> Path:
    """A folder with nothing but a configuration: weights are random."""
    raw = {
        "architectures": ["LlamaForCausalLM"],
        "torch_dtype": "bfloat16",
        "tie_word_embeddings": True,
        "max_position_embeddings": 4096,
        **SHAPES[shape],
    }
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(raw))
    return folder


def read_rate(file: DirectFile, arena: Arena, offset: int, num_bytes: int) -> float:
    """Bytes per second of direct reads into two places that take turns, the next being read while one is waited for, as in the engine."""
    place = arena.num_bytes // 2
    started_s = time.perf_counter()
    pending: list[ReadRequests] = []
    for number, start in enumerate(range(0, num_bytes, place)):
        if len(pending) == 2:
            pending.pop(0).wait()
        first = number % 2 * place
        pending.append(file.read(offset + start, arena.buffer[first : first + min(place, num_bytes - start)]))
    for requests in pending:
        requests.wait()
    return num_bytes / (time.perf_counter() - started_s)


def measure(engine: Engine, turns: int, batch: int) -> dict[str, Any]:
    """Rates of steps and of reads, turn by turn."""
    layers = engine.layers
    assert layers is not None, "everything fits: give less --memory"
    for number in range(batch):
        params = SamplingParams(max_tokens=CONTEXT - 40, ignore_eos=True)
        prompt = [1 + (number + 7 * place) % 1000 for place in range(16)]
        engine.add(GenerateRequest(request_id=str(number), prompt_ids=prompt, params=params))
    engine.step()
    engine.step()
    file = DirectFile(layers.path)
    step_rates, read_rates, step_s = [], [], []
    largest = max(span.num_bytes for span in engine.fit.plan.layer_spans)
    with Arena(2 * largest, "reads") as arena:
        arena.advise_huge()  # as the engine's weights: a direct read pins every page that it writes to
        read_rate(file, arena, 1 << 20, layers.step_bytes)  # the pages come
        for turn in range(turns):
            started_s = time.perf_counter()
            for _ in range(STEPS_PER_TURN):
                engine.step()
            elapsed_s = time.perf_counter() - started_s
            step_s.append(elapsed_s / STEPS_PER_TURN)
            step_rates.append(STEPS_PER_TURN * layers.step_bytes / elapsed_s)
            time.sleep(1.0)  # what the stream reads ahead is done by then
            read_rates.append(read_rate(file, arena, 1 << 20, layers.step_bytes))
            print(
                f"turn {turn + 1}: step {step_rates[-1] / 1e9:.3f} GB/s, read {read_rates[-1] / 1e9:.3f} GB/s",
                file=sys.stderr,
            )
    file.close()
    ratios = [step / read for step, read in zip(step_rates, read_rates, strict=True)]
    return {
        "step_s": statistics.median(step_s),
        "tokens_per_s": batch / statistics.median(step_s),
        "step_bytes_per_s": statistics.median(step_rates),
        "read_bytes_per_s": statistics.median(read_rates),
        "ratio": statistics.median(ratios),
        "ratio_by_turn": ratios,
        "is_direct": file.is_direct,
    }


def main() -> int:
    """Print the report, or write it to a file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--shape", choices=sorted(SHAPES), default="1.2b")
    parser.add_argument("--memory", default="1GiB")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--turns", type=int, default=NUM_TURNS)
    parser.add_argument(
        "--folder", type=Path, default=None, help="where the packed layers go (default: a temporary folder)"
    )
    parser.add_argument("--output", type=Path, default=None)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        config = EngineConfig(
            model=str(write_config(Path(temporary) / "model", asked.shape)),
            load_format="dummy",
            memory=asked.memory,
            max_model_len=CONTEXT,
            max_num_seqs=max(asked.batch, 1),
            max_num_batched_tokens=max(64, asked.batch + 1),
            offload_folder=asked.folder or Path(temporary) / "offload",
        )
        with Engine.load(config) as engine:
            plan, streaming = engine.fit.plan, engine.memory()["streaming"]
            found = measure(engine, asked.turns, asked.batch)
            process = engine.memory()["process"]
    publish(
        "python -m benchmarks.streaming",
        asked.output,
        shape=asked.shape,
        memory_bytes=parse_size(asked.memory),
        batch=asked.batch,
        weight_bytes=sum(weight.num_bytes for weight in plan.weights.values()),
        streaming=streaming,
        process=process,
        **found,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
