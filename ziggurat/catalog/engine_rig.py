# SPDX-License-Identifier: Apache-2.0
"""Serves with a small model: real tokens, real step times; idle time between requests is skipped, not waited for."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from ziggurat.catalog.serving import ForwardRecorder, Run
from ziggurat.clock import SkippingClock
from ziggurat.scheduling.calibration import StepSample
from ziggurat.scheduling.planners import resolve
from ziggurat.scheduling.protocol import TokenBudget
from ziggurat.workload.records import Arrival
from ziggurat.workload.replay import replay
from ziggurat.workload.sources import OpenLoop

if TYPE_CHECKING:
    from ziggurat.engine.engine import Engine

MAX_STEP_TOKENS = 1024
MAX_NUM_SEQS = 64
MEMORY = "1GiB"
LLAMA_26M: Mapping[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 4096,
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}
"""A shape of 25.7M parameters, for experiments about the time of steps. A decode step of the embedded model takes less than a
millisecond, so a hiccup of the machine would decide about percentiles; here prompts and decodes stand to each other as in publications."""


class EngineRig:
    """One engine for all planners; between runs planner and budget are changed while it is idle. Owns the engine.

    Args:
        shape: a config.json whose weights are random (speed does not depend on them); None for the embedded model.
    """

    def __init__(self, shape: Mapping[str, Any] | None = None) -> None:
        from ziggurat.engine.config import EngineConfig
        from ziggurat.engine.engine import Engine

        self._start_s = time.monotonic()
        self._clock = SkippingClock()
        self._exit = ExitStack()
        model = "embedded" if shape is None else self._write(shape)
        config = EngineConfig(
            model=model,
            load_format="auto" if shape is None else "dummy",
            memory=MEMORY,
            max_num_batched_tokens=MAX_STEP_TOKENS,
            max_num_seqs=MAX_NUM_SEQS,
            max_queued_requests=100_000,
        )
        self._engine: Engine = Engine.load(config, clock=self._clock)
        self._num_runs = 0

    @property
    def max_model_len(self) -> int:
        """See `Rig.max_model_len`. A prompt must fit a step whole beside all decodes, for planners that do not cut it."""
        return min(self._engine.model.max_model_len, MAX_STEP_TOKENS - MAX_NUM_SEQS)

    def decode_step_s(self, num_seqs: int, context_tokens: int) -> float:
        """See `Rig.decode_step_s`: the median step while that many requests decode."""
        arrivals = [
            Arrival(t_s=0.0, id=f"decode-{index}", prompt_len=context_tokens, max_new=12) for index in range(num_seqs)
        ]
        budget = TokenBudget(max_num_batched_tokens=MAX_STEP_TOKENS, max_num_seqs=num_seqs)
        # All prompts first, then all decode together: but for each one's first gap, every gap is such a step.
        records = self.serve("prefill-priority", budget, arrivals).records
        gaps = sorted(gap for record in records for gap in record.itl_s[1:])
        return gaps[len(gaps) // 2]

    def step_samples(self) -> list[StepSample]:
        """See `Rig.step_samples`."""
        from ziggurat.engine.calibrate import measure_steps, step_sizes

        return measure_steps(self._engine, step_sizes(256))

    def serve(self, planner: str, budget: TokenBudget, arrivals: Sequence[Arrival]) -> Run:
        """See `Rig.serve`."""
        from ziggurat.engine.client import EngineClient

        forwards: list[int] = []
        self._engine.core.planner = ForwardRecorder(resolve(planner), forwards.append)
        self._engine.core.budget = budget
        self._num_runs += 1
        client = EngineClient(self._engine, clock=self._clock, salt=f"run-{self._num_runs}")
        found = replay(OpenLoop(arrivals), client)
        self._engine.store.drop_cache()
        return Run(records=found.records, answers=found.answers, loaded_forwards=forwards)

    def elapsed_s(self) -> float:
        """See `Rig.elapsed_s`."""
        return time.monotonic() - self._start_s

    def close(self) -> None:
        """Give the engine's memory back."""
        self._engine.close()
        self._exit.close()

    def _write(self, shape: Mapping[str, Any]) -> str:
        folder = self._exit.enter_context(TemporaryDirectory(prefix="ziggurat-rig-"))
        (Path(folder) / "config.json").write_text(json.dumps(dict(shape)), encoding="utf-8")
        return folder
