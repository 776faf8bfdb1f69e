# SPDX-License-Identifier: Apache-2.0
"""Which requests are sent: the workload flags of ``bench``, by vLLM's names."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from ziggurat.engine.config import option
from ziggurat.errors import ConfigError
from ziggurat.workload.arrivals import LENGTHS, Lengths, make_arrivals, uniform
from ziggurat.workload.records import Arrival
from ziggurat.workload.traces.formats import TRACE_FORMATS
from ziggurat.workload.traces.reading import read_trace

TRACES = ("timed_trace", *TRACE_FORMATS.names())
"""``timed_trace`` takes a file of any format; the others insist on theirs."""
DATASETS = ("random", *LENGTHS.names(), *TRACES)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadOptions:
    """The requests. Prompts are made up; lengths and times are what matters.

    Raises:
        ConfigError: a value is out of range, or a trace without its file.
    """

    dataset_name: str = option(
        "random",
        "lengths: uniform, of a publication, or a trace (timed_trace: of any format)",
        choices=DATASETS,
        group="workload",
    )
    dataset_path: Path | None = option(
        None, "the trace: BurstGPT, Azure, Mooncake, ShareGPT or Vidur (docs/traces.md)", group="workload"
    )
    num_prompts: int = option(100, "requests", group="workload")
    random_input_len: int = option(128, "mean prompt of random, tokens", group="workload")
    random_output_len: int = option(32, "mean output of random, tokens", group="workload")
    random_range_ratio: float = option(0.0, "random draws lengths up to this share below and above", group="workload")
    scale: float = option(0.125, "published lengths are taken this much (fastgen: its prompts)", group="workload")
    seed: int = option(0, "of lengths and arrivals; a seed gives the same requests at every rate", group="workload")
    burstiness: float = option(1.0, "shape of gamma arrivals; 1 is Poisson, below comes in bursts", group="workload")

    def __post_init__(self) -> None:
        for name in ("num_prompts", "random_input_len", "random_output_len"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.random_range_ratio < 1:
            raise ConfigError(f"random_range_ratio must be at least 0 and below 1, got {self.random_range_ratio}")
        if not 0 < self.scale < math.inf:
            raise ConfigError(f"scale must be above 0, got {self.scale}")
        if (self.dataset_name in TRACES) != (self.dataset_path is not None):
            raise ConfigError("--dataset-name timed_trace (or a format's name) and --dataset-path FILE go together")

    def lengths(self) -> Lengths:
        """How long prompts and outputs are."""
        if self.dataset_name == "random":
            spread = self.random_range_ratio
            return Lengths(
                prompt=uniform(self.random_input_len, spread=spread),
                output=uniform(self.random_output_len, spread=spread),
            )
        return LENGTHS.get(self.dataset_name)(self.scale)

    def arrivals(self, max_model_len: int | None) -> list[Arrival]:
        """The workload: a trace at its own times, anything else at one request per second."""
        if self.dataset_path is not None:
            name = None if self.dataset_name == "timed_trace" else self.dataset_name
            return read_trace(self.dataset_path, num_requests=self.num_prompts, source_format=name)
        return make_arrivals(
            self.num_prompts,
            self.lengths(),
            seed=self.seed,
            burstiness=self.burstiness,
            max_model_len=max_model_len,
        )
