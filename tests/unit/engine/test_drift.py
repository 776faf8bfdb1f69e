# SPDX-License-Identifier: Apache-2.0
"""Bytes that no lease explains shrink the KV pool, in steps that can be seen, and come back."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.checkpoints import write_checkpoint
from tests.unit.engine.settings import FASTEST, MAX_MODEL_LEN, Setting, load
from ziggurat.engine import drift
from ziggurat.engine.drift import DriftWatch
from ziggurat.engine.engine import Engine
from ziggurat.engine.types import GenerateRequest
from ziggurat.memory.machine import Machine, ProcessMemory
from ziggurat.scheduling.sampling import SamplingParams


class FakeMachine(Machine):
    """Reports the Pss it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.pss_bytes = 0

    def process_memory(self) -> ProcessMemory:
        return ProcessMemory(
            rss_bytes=self.pss_bytes, pss_bytes=self.pss_bytes, charged_bytes=self.pss_bytes, has_pss=True
        )


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    with load(write_checkpoint(tmp_path), Setting(backend=FASTEST, spare_blocks=10, has_prefix_cache=True)) as engine:
        yield engine


def watch(engine: Engine) -> tuple[DriftWatch, FakeMachine]:
    machine = FakeMachine()
    engine.drift = DriftWatch(engine.resources, engine.store, machine)
    return engine.drift, machine


def set_drift(engine: Engine, machine: FakeMachine, num_bytes: int) -> None:
    resources = engine.resources
    machine.pss_bytes = resources.baseline_bytes + resources.known_bytes() + resources.reserve_bytes() + num_bytes


def serve(engine: Engine, name: str, num_prompt: int) -> None:
    params = SamplingParams(max_tokens=4, ignore_eos=True)
    engine.add(GenerateRequest(request_id=name, prompt_ids=list(range(2, 2 + num_prompt)), params=params))
    while engine.has_work:
        assert all(output.finish_reason != "error" for output in engine.step())


def test_drift_takes_blocks_out_and_puts_them_back(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    (group,) = engine.fit.plan.program.kv_groups()
    size = engine.fit.plan.block_bytes(group)
    before = engine.store.free_blocks()[0]
    watching, machine = watch(engine)
    set_drift(engine, machine, -1)
    watching.check()
    assert watching.num_blocks == 0 and not caplog.records
    set_drift(engine, machine, 3 * size - 1)
    with caplog.at_level(logging.WARNING):
        watching.check()
        watching.check()
    assert (watching.num_blocks, engine.store.free_blocks()[0]) == (3, before - 3)
    assert len(caplog.records) == 1 and "3 of 16 KV blocks per group are out of circulation" in caplog.text
    assert sum(row["owner"].startswith("drift/") for row in engine.memory()["ledger"]) == 3
    serve(engine, "a", 50)
    set_drift(engine, machine, 0)
    watching.check()
    assert watching.num_blocks == 0
    engine.store.drop_cache()
    assert engine.store.free_blocks()[0] == before


def test_a_lone_sequence_always_keeps_its_space(engine: Engine) -> None:
    watching, machine = watch(engine)
    set_drift(engine, machine, 1 << 40)
    watching.check()
    assert watching.num_blocks == 10
    serve(engine, "long", MAX_MODEL_LEN - 4)
    assert engine.core.counters.stalls == 0


def test_the_pages_of_idle_blocks_go_back(engine: Engine) -> None:
    serve(engine, "a", 80)
    engine.store.drop_cache()
    pool = engine.resources.pools[0]
    touched = pool.resident_bytes()
    watching, machine = watch(engine)
    set_drift(engine, machine, 1 << 40)
    watching.check()
    assert pool.resident_bytes() < touched


def test_it_measures_every_so_many_steps(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drift, "CHECK_INTERVAL_STEPS", 5)
    watching, machine = watch(engine)
    set_drift(engine, machine, 1 << 30)
    serve(engine, "a", 3)
    assert watching.num_blocks == 0
    serve(engine, "b", 3)
    assert watching.num_blocks == 10
