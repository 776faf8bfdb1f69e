# SPDX-License-Identifier: Apache-2.0
"""Adapters of the embedded model trained on styles and formats it has never seen, and many of them served from one pool.

Four tasks, mixed in one adapter: prose in capitals, prose whose words are spelled backwards, prose shifted by thirteen letters (a domain of
its own: no word survives), and records as JSON. Held-out loss is over documents of the other split.
"""

from __future__ import annotations

import codecs
import json
import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from ziggurat.workload import prose
from ziggurat.workload.prose import Split

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from ziggurat.training.interpreter import ProgramModel
    from ziggurat.training.lowrank import AdapterConfig, LowRankUpdates
    from ziggurat.training.sources import Source

SEQUENCE_TOKENS = 128
POOL_MEMORY = "48MiB"
HELD_OUT_SEED = 900_017


def _json_record(rng: np.random.Generator, split: Split) -> str:
    words = prose.document(rng, split).split()
    picked = [words[int(rng.integers(len(words)))].strip(".,") for _ in range(4)]
    return json.dumps({"name": picked[0], "items": picked[1:3], "count": int(rng.integers(100)), "note": picked[3]})


TASKS: Mapping[str, Callable[[np.random.Generator, Split], str]] = {
    "capitals": lambda rng, split: prose.document(rng, split).upper(),
    "backwards": lambda rng, split: " ".join(word[::-1] for word in prose.document(rng, split).split()),
    "shifted": lambda rng, split: codecs.encode(prose.document(rng, split), "rot13"),
    "records": _json_record,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What one training left.

    Attributes:
        losses: held-out nats per token, by task.
        step_s: median seconds of a step.
    """

    losses: Mapping[str, float]
    step_s: float

    @property
    def loss(self) -> float:
        """Mean over the tasks."""
        return statistics.fmean(self.losses.values())


class MosRig:
    """Trains and serves adapters of the embedded model. Two threads; deterministic for a seed but for the clock."""

    def __init__(self) -> None:
        import torch

        from ziggurat.engine.resolve import EMBEDDED_FOLDER
        from ziggurat.training.export import load_exported

        torch.set_num_threads(2)
        self.base = EMBEDDED_FOLDER
        self.model, self.tokenizer = load_exported(EMBEDDED_FOLDER)
        self.model.requires_grad_(False)

    def train(self, config: AdapterConfig, seed: int, num_steps: int, tokens_per_step: int, rate: float) -> Trained:
        """Train an adapter on the mixed tasks and evaluate it; linear decay, no warm-up, gradients clipped at 1."""
        import torch

        from ziggurat.training.lowrank import new_updates

        updates = self.model.updates = new_updates(self.model.program, config, seed)
        optimizer = torch.optim.AdamW(updates.parameters(), betas=(0.9, 0.999), weight_decay=0.0)
        sources, seconds = _sources(self.tokenizer, "train"), []
        for step in range(num_steps):
            batch = _batch(sources, tokens_per_step, seed, step)
            start = time.perf_counter()
            for group in optimizer.param_groups:
                group["lr"] = rate * (1 - step / num_steps)
            _loss(self.model, batch).backward()
            torch.nn.utils.clip_grad_norm_(updates.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            seconds.append(time.perf_counter() - start)
        return Trained(losses=self._held_out(), step_s=statistics.median(seconds))

    def base_loss(self) -> float:
        """Held-out loss without an adapter."""
        self.model.updates = None
        return statistics.fmean(self._held_out().values())

    def _held_out(self) -> dict[str, float]:
        import torch

        sources, found = _sources(self.tokenizer, "held_out"), {}
        with torch.no_grad():
            for name, source in sources.items():
                batch = _batch({name: source}, 32 * SEQUENCE_TOKENS, HELD_OUT_SEED, 0)
                found[name] = float(_loss(self.model, batch))
        return found

    # ---- serving

    def resident(self, config: AdapterConfig, num_adapters: int) -> int:
        """How many of so many adapters are in the pool of an engine of `POOL_MEMORY` after each was asked for once."""
        with TemporaryDirectory() as folder:
            engine = self._engine(config, num_adapters, Path(folder))
            for number in range(num_adapters):
                _ask(engine, f"a{number}")
            count = sum(bool(row["is_loaded"]) for row in engine.adapters.report())
            engine.close()
        return count

    def paging(self, config: AdapterConfig, num_adapters: int, num_requests: int) -> tuple[float, float]:
        """Requests for adapters by Zipf's law, one at a time: the share that found theirs in the pool, and the median seconds."""
        rng = random.Random(5)
        names = rng.choices(range(num_adapters), [1 / (rank + 1) for rank in range(num_adapters)], k=num_requests)
        with TemporaryDirectory() as folder:
            engine = self._engine(config, num_adapters, Path(folder))
            seconds = []
            for name in names:
                start = time.perf_counter()
                _ask(engine, f"a{name}")
                seconds.append(time.perf_counter() - start)
            hits = 1 - engine.adapters.num_loads / num_requests
            engine.close()
        return hits, statistics.median(seconds)

    def assemble_s(self, hidden: int, num_layers: int) -> float:
        """Median seconds to make plain matrices of one adapter of a Llama-like model of that width: q, k, v, o, gate, up, down."""
        import torch

        from ziggurat.programs.architectures import build_program
        from ziggurat.training.lowrank import new_updates

        raw = {
            **self.model_config(),
            "hidden_size": hidden,
            "intermediate_size": 2 * hidden,
            "num_hidden_layers": num_layers,
        }
        raw |= {"num_attention_heads": hidden // 64, "num_key_value_heads": hidden // 64}
        updates = new_updates(build_program(raw, "train"), mos_config(), 0)
        seconds = []
        with torch.no_grad():
            for _ in range(9):
                start = time.perf_counter()
                made = [matrix.contiguous() for name in updates.sizes for matrix in updates.matrices(name)]
                seconds.append(time.perf_counter() - start)
        assert made
        return statistics.median(seconds)

    def model_config(self) -> dict[str, Any]:
        """The embedded model's configuration."""
        from ziggurat.programs.config import load_config

        return load_config(self.base)

    def _engine(self, config: AdapterConfig, num_adapters: int, folder: Path) -> Any:
        """An engine that knows so many adapters: names over sixteen folders of different contents."""
        from ziggurat.engine.config import EngineConfig
        from ziggurat.engine.engine import Engine

        folders = [self._write(config, seed, folder / str(seed)) for seed in range(min(16, num_adapters))]
        modules = tuple(f"a{number}={folders[number % len(folders)]}" for number in range(num_adapters))
        return Engine.load(
            EngineConfig(memory=POOL_MEMORY, max_model_len=256, max_num_seqs=4, threads=2, lora_modules=modules)
        )

    def _write(self, config: AdapterConfig, seed: int, folder: Path) -> Path:
        from ziggurat.training.lowrank import new_updates, save_adapter

        save_adapter(_filled(new_updates(self.model.program, config, seed), seed), folder, "embedded")
        return folder


def mos_config() -> AdapterConfig:
    """MoS of equivalent rank 2 with all four strategies; six layers have six public rows for a layer's five."""
    from ziggurat.training.lowrank import AdapterConfig

    return AdapterConfig(kind="mos", rank=6, alpha=12.0, equivalent_rank=2, num_shards=2, private_rank=1)


def variants(num_layers: int) -> dict[str, AdapterConfig]:
    """Everything that is compared, by name."""
    from ziggurat.training.lowrank import AdapterConfig

    mos, whole = mos_config(), 2 * num_layers
    shared = replace(
        mos,
        rank=whole,
        alpha=2.0 * whole,
        num_shards=1,
        private_rank=0,
        has_own_subsets=False,
        is_dissociated=False,
    )
    return {
        "lora-16": AdapterConfig(kind="lora", rank=16, alpha=32.0),
        "lora-2": AdapterConfig(kind="lora", rank=2, alpha=4.0),
        "lora-6": AdapterConfig(kind="lora", rank=6, alpha=12.0),
        "pure-sharing": shared,
        "random-scaling": replace(shared, has_random_scales=True),
        "mos": mos,
        "without-subsets": replace(mos, rank=whole, alpha=2.0 * whole, private_rank=0, has_own_subsets=False),
        "without-dissociation": replace(mos, is_dissociated=False),
        "without-sharding": replace(mos, num_shards=1),
        "without-private-rows": replace(mos, private_rank=0),
    }


def _filled(updates: LowRankUpdates, seed: int) -> LowRankUpdates:
    import torch

    noise = torch.Generator().manual_seed(seed)
    for parameter in updates.parameters():
        parameter.data = torch.randn(parameter.shape, generator=noise) * 0.02
    return updates


def _ask(engine: Any, adapter: str) -> None:
    from ziggurat.engine.types import GenerateRequest
    from ziggurat.scheduling.sampling import SamplingParams

    params = SamplingParams(temperature=0.0, max_tokens=1)
    engine.add(GenerateRequest(request_id=adapter, prompt_ids=[5, 6, 7, 8], params=params, adapter=adapter))
    while engine.has_work:
        engine.step()


def _sources(tokenizer: Tokenizer, split: Split) -> dict[str, Source]:
    from ziggurat.training.tokenizer import encode

    def source(task: Callable[[np.random.Generator, Split], str]) -> Source:
        def sample(rng: np.random.Generator, length: int) -> tuple[Any, Any]:
            ids: list[int] = []
            while len(ids) < length:
                ids += encode(tokenizer, " " + task(rng, split))
            return np.asarray(ids[:length], dtype=np.int64), np.ones(length, dtype=bool)

        return sample

    return {name: source(task) for name, task in TASKS.items()}


def _batch(sources: Mapping[str, Source], num_tokens: int, seed: int, step: int) -> Any:
    from ziggurat.training.config import MixtureEntry, StageConfig
    from ziggurat.training.sources import make_batch

    stage = StageConfig(
        name="tasks",
        lengths_tokens=(SEQUENCE_TOKENS,),
        tokens_per_step=num_tokens,
        max_tokens=1,
        learning_rate=0.0,
        mixture=tuple(MixtureEntry(source=name, share=1.0) for name in sources),
    )
    return make_batch(sources, stage, seed, step)


def _loss(model: ProgramModel, batch: Any) -> Any:
    import torch
    import torch.nn.functional as F

    logits = model(torch.from_numpy(batch.ids), torch.from_numpy(batch.rows))
    return F.cross_entropy(logits, torch.from_numpy(batch.targets))
