# SPDX-License-Identifier: Apache-2.0
"""KIVI in the engine: the same bits on every way, the planned bytes, and what does not go with it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.adapters import write_adapter
from tests.checkpoints import CONFIGS, write_checkpoint
from tests.unit.engine.settings import FASTEST, Setting, load
from tests.unit.engine.test_exactness import run
from ziggurat.engine.config import EngineConfig
from ziggurat.engine.engine import Engine
from ziggurat.engine.sizing import open_model, size
from ziggurat.errors import ConfigError, UnsupportedFeature
from ziggurat.programs.formats import KIVI2
from ziggurat.quantization.kivi import cache_bytes
from ziggurat.scheduling.planners import PLANNERS

MIB = 1 << 20
FORMATS = ("kivi4", "kivi2")
BASE = Setting(backend=FASTEST, block_size=32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = {**CONFIGS["llama"], "head_dim": 32}
    return write_checkpoint(tmp_path_factory.mktemp("kivi"), config, with_tokenizer=False)


@pytest.mark.parametrize("kv", FORMATS)
@settings(max_examples=6)
@given(
    setting=st.builds(
        Setting,
        backend=st.just(FASTEST),
        block_size=st.just(32),
        threads=st.sampled_from([1, 2]),
        max_num_seqs=st.sampled_from([1, 2, 5]),
        max_num_batched_tokens=st.sampled_from([7, 33, 256]),
        spare_blocks=st.sampled_from([0, 1, 100]),
        has_prefix_cache=st.booleans(),
        planner=st.sampled_from(PLANNERS.names()),
        gaps=st.tuples(*[st.integers(0, 4)] * 5),
        is_repeated=st.booleans(),
    )
)
@example(setting=replace(BASE, spare_blocks=0, max_num_seqs=5, max_num_batched_tokens=16))
@example(setting=replace(BASE, spare_blocks=2, has_prefix_cache=True, is_repeated=True, threads=2, max_num_seqs=5))
def test_nothing_around_a_request_changes_it(folder: Path, kv: str, setting: Setting) -> None:
    """Chunks, preemption, prefix hits, forks, batches: what a position sees depends on the position."""
    alone = run(folder, replace(BASE, kv_cache_dtype=kv, is_alone=True))
    assert run(folder, replace(setting, kv_cache_dtype=kv)) == alone


@pytest.mark.skipif(FASTEST == "torch", reason="the native kernels are not built: the property ran with the twins")
def test_the_twins_keep_it_too(folder: Path) -> None:
    setting = replace(BASE, backend="torch", kv_cache_dtype="kivi2", has_prefix_cache=True, is_repeated=True)
    assert run(folder, setting) == run(folder, replace(BASE, backend="torch", kv_cache_dtype="kivi2", is_alone=True))


def test_packed_blocks_are_read(folder: Path) -> None:
    """Answers behind more than 32 tokens are those of other numbers; how much worse they are is the catalog's question."""
    found = [run(folder, replace(BASE, kv_cache_dtype=kv, is_alone=True)) for kv in ("fp32", *FORMATS)]
    behind = [{key: tokens for key, tokens in each.items() if key[0] == "r2"} for each in found]
    assert behind[0] != behind[1] != behind[2] != behind[0]
    assert found[0]["r3", 0] == found[1]["r3", 0] == found[2]["r3", 0], "one token and twenty more: one block, in full"


@pytest.mark.parametrize("kv", FORMATS)
def test_the_engine_takes_what_was_planned(kv: str) -> None:
    config = EngineConfig(memory="64MiB", kv_cache_dtype=kv, max_num_seqs=4)
    planned = size(config, open_model(config), 64 * MIB)
    plan = planned.plan
    group, tail = plan.program.kv_groups()
    assert plan.limits.block_size == 32 and tail.is_tail and not group.is_tail
    bits = {"kivi4": 5, "kivi2": 3}[kv]
    assert plan.block_bytes(group) == 32 * group.values_per_token() * bits // 8
    assert plan.block_bytes(tail) == 32 * group.values_per_token() * 4
    assert planned.num_blocks[1] == 256 // 32 + 2 * 4
    with Engine.load(config) as engine:
        report = engine.memory()
        assert report["planned_bytes"] + report["reserve_bytes"] == 64 * MIB
        assert [pool.num_bytes for pool in engine.resources.pools] == [
            (count * plan.block_bytes(each) + 4095) // 4096 * 4096
            for count, each in zip(planned.num_blocks, plan.program.kv_groups(), strict=True)
        ]


def test_bytes_of_a_sequence() -> None:
    bf16 = 4096 * 100 * 2
    assert cache_bytes(4096, 100, KIVI2) == 4096 * 100 * 3 // 8
    assert cache_bytes(4095, 100, KIVI2) == 4064 * 100 * 3 // 8 + 32 * 100 * 4 <= 0.25 * bf16


def test_what_does_not_go_with_it_is_said(folder: Path, tmp_path: Path) -> None:
    asked = EngineConfig(model=str(folder), memory="64MiB", max_model_len=96, kv_cache_dtype="kivi4")
    with pytest.raises(ConfigError, match="packs blocks of 32 tokens, and --block-size is 8"):
        Engine.load(replace(asked, block_size=8))
    with pytest.raises(UnsupportedFeature, match="preempted sequences are computed again"):
        Engine.load(replace(asked, swap_space="1MiB"))
    adapter = write_adapter(tmp_path / "adapter", folder)
    with pytest.raises(UnsupportedFeature, match="use another --kv-cache-dtype"):
        Engine.load(replace(asked, lora_modules=(f"a={adapter}",)))
    windows = write_checkpoint(tmp_path / "windows", {**CONFIGS["qwen2_window"], "head_dim": 32}, with_tokenizer=False)
    with pytest.raises(UnsupportedFeature, match="has sliding windows: use q8_0 or q4_0"):
        open_model(replace(asked, model=str(windows)))
    with load(folder, replace(BASE, kv_cache_dtype="kivi4")) as engine:
        assert engine.model.kv_format == "kivi4"
