# SPDX-License-Identifier: Apache-2.0
"""The engine times its own steps: by the clock it was given, with nothing left behind, and its answers are as before."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.checkpoints import write_checkpoint
from ziggurat.engine.calibrate import calibrate_engine, measure_steps, step_sizes
from ziggurat.engine.config import EngineConfig
from ziggurat.engine.engine import Engine
from ziggurat.engine.types import GenerateRequest
from ziggurat.errors import ConfigError
from ziggurat.scheduling.sampling import SamplingParams


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("llama"), "llama", with_tokenizer=False)


def config(folder: Path, **settings) -> EngineConfig:  # type: ignore[no-untyped-def]
    return EngineConfig(**{"model": str(folder), "memory": "48MiB", "threads": 1, **settings})


def answer(engine: Engine) -> list[int]:
    params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
    engine.add(GenerateRequest(request_id="a", prompt_ids=range(40), params=params))
    return [
        token.token_id for _ in iter(lambda: engine.has_work, False) for out in engine.step() for token in out.tokens
    ]


def test_step_sizes_are_doubled_row_tiles() -> None:
    assert step_sizes(256) == [16, 32, 64, 128, 256]
    assert step_sizes(100) == [16, 32, 64, 100]


def test_an_engine_that_was_calibrated_answers_as_before_and_holds_nothing(folder: Path) -> None:
    with Engine.load(config(folder)) as engine:
        expected = answer(engine)
    with Engine.load(config(folder, max_num_batched_tokens="auto")) as engine:
        budget = engine.core.budget
        assert budget.max_num_seqs < budget.max_num_batched_tokens <= 256
        assert engine.core.counters.requests == 0
        assert all(stats.used == stats.cached == 0 for stats in engine.store.stats())
        assert answer(engine) == expected
        samples = measure_steps(engine, step_sizes(64), num_repeats=1)
        assert [sample.num_tokens for sample in samples] == [16, 32, 64]
        assert all(sample.seconds > 0 for sample in samples)


def test_every_repeat_computes_all_tokens_of_its_steps(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A repeat that finds in the cache what the last one computed would time steps of almost nothing."""
    with Engine.load(config(folder)) as engine:
        computed: list[int] = []
        run = engine.executor.run

        def counted(batch):  # type: ignore[no-untyped-def]
            computed.append(batch.num_tokens)
            return run(batch)

        monkeypatch.setattr(engine.executor, "run", counted)
        sizes = step_sizes(64)
        measure_steps(engine, sizes, num_repeats=3)
        ends = [i for i in range(len(computed)) if computed[i : i + len(sizes)] == sizes]
        assert len(ends) == 3, computed


def test_a_target_bounds_the_step_and_one_nobody_meets_is_refused(folder: Path) -> None:
    with Engine.load(config(folder)) as engine:
        small, large = measure_steps(engine, [16, 256])
        found = calibrate_engine(engine, tbt_target_s=10.0)
        assert engine.core.budget.max_num_batched_tokens == found.max_num_batched_tokens
        assert small.seconds < large.seconds
    with pytest.raises(ConfigError, match="no step keeps a time between tokens of 0.001 ms"):
        Engine.load(config(folder, tbt_target_ms=0.001))


def test_settings_that_contradict_each_other(folder: Path) -> None:
    with pytest.raises(ConfigError, match="max_num_batched_tokens 64 and tbt_target_ms 50 contradict each other"):
        config(folder, max_num_batched_tokens=64, tbt_target_ms=50)
    with pytest.raises(ConfigError, match="must be 'auto' or an integer of at least 1, got 'much'"):
        config(folder, max_num_batched_tokens="much")
    with pytest.raises(ConfigError, match="tbt_target_ms must be above 0, got 0"):
        config(folder, tbt_target_ms=0)
    with pytest.raises(ConfigError, match="max_num_batched_tokens 4 is below max_num_seqs"):
        config(folder, max_num_batched_tokens="4", max_num_seqs=8)
