# SPDX-License-Identifier: Apache-2.0
"""Swapping in the real engine: the same bits as without preemption, bytes inside a tier of their own, refusals with numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.checkpoints import CONFIGS, write_checkpoint
from tests.unit.engine.settings import FASTEST, Setting, load
from ziggurat.engine.config import EngineConfig
from ziggurat.engine.engine import Engine
from ziggurat.engine.types import GenerateRequest
from ziggurat.errors import ConfigError, DoesNotFit, UnsupportedFeature
from ziggurat.memory.ledger import SWAP
from ziggurat.scheduling.sampling import SamplingParams

PROMPTS = [[5 + (7 * number + place) % 80 for place in range(40 + number)] for number in range(6)]
ROOMY = Setting(backend=FASTEST, block_size=4, max_num_batched_tokens=24, max_num_seqs=6)
TIGHT = replace(ROOMY, spare_blocks=12)
SWAPPING = replace(TIGHT, swap_space="1MiB", preemption_mode="swap")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model"), "qwen2", dtype=torch.bfloat16, with_tokenizer=False)


def answers(engine: Engine) -> dict[str, list[int]]:
    """Tokens of all prompts, served together."""
    for number, prompt in enumerate(PROMPTS):
        params = SamplingParams(temperature=1.0, seed=number, max_tokens=30, ignore_eos=True)
        engine.add(GenerateRequest(request_id=str(number), prompt_ids=prompt, params=params))
    found: dict[str, list[int]] = {str(number): [] for number in range(len(PROMPTS))}
    while engine.has_work:
        for output in engine.step():
            found[output.request_id] += [token.token_id for token in output.tokens]
    engine.store.audit()
    return found


@pytest.mark.parametrize("has_prefix_cache", [True, False])
def test_the_same_bits_and_nothing_computed_twice(folder: Path, has_prefix_cache: bool) -> None:
    with load(folder, replace(ROOMY, has_prefix_cache=has_prefix_cache)) as engine:
        expected = answers(engine)
        assert engine.core.counters.preemptions == 0 and engine.memory()["swap"] is None
    with load(folder, replace(TIGHT, has_prefix_cache=has_prefix_cache)) as engine:
        assert answers(engine) == expected
        assert engine.core.counters.preemptions > 0 and engine.core.counters.recomputed_tokens > 0
    with load(folder, replace(SWAPPING, has_prefix_cache=has_prefix_cache)) as engine:
        assert answers(engine) == expected
        counters = engine.core.counters
        assert counters.preemptions > 0 and counters.recomputed_tokens == 0 and counters.swapped_in_tokens > 0
        memory = engine.memory()
        assert [tier["tier"] for tier in memory["tiers"]] == ["ram", SWAP]  # type: ignore[attr-defined]
        assert memory["limits"][SWAP] == 1 << 20  # type: ignore[index]
        assert memory["swap"]["num_waiting_slots"] == 0  # type: ignore[index]
        assert engine.executor.mover is not None and engine.executor.mover.seconds_per_token > 0
        assert engine.stats()["swapped_in_tokens_total"] == counters.swapped_in_tokens


def test_idle_prefixes_come_back_and_a_reset_forgets_them(folder: Path) -> None:
    with load(folder, replace(ROOMY, has_prefix_cache=True)) as engine:
        expected = answers(engine)
    with load(folder, replace(SWAPPING, has_prefix_cache=True)) as engine:
        assert answers(engine) == answers(engine) == answers(engine) == expected
        counters = engine.core.counters
        assert engine.memory()["swap"]["num_prefix_slots"] > 0  # type: ignore[index]
        engine.reset_prefix_cache()
        assert engine.memory()["swap"]["num_prefix_slots"] == 0  # type: ignore[index]
        hits = counters.prefix_hit_tokens
        for number, prompt in enumerate(PROMPTS):
            params = SamplingParams(temperature=0, max_tokens=1)
            engine.add(GenerateRequest(request_id=f"again{number}", prompt_ids=[1, *prompt], params=params))
            while engine.has_work:
                engine.step()
        assert counters.prefix_hit_tokens == hits, "other beginnings: nothing may be found"
        assert answers(engine) == expected


@pytest.mark.parametrize("kv_cache_dtype", ["q8_0", "q4_0"])
def test_quantized_keys_and_values_have_the_same_bits_on_every_way(tmp_path: Path, kv_cache_dtype: str) -> None:
    """Chunks, prefix hits, recomputing and swapping: an entry is quantized by its own values alone, so no way shows."""
    folder = write_checkpoint(tmp_path, {**CONFIGS["llama"], "head_dim": 32}, with_tokenizer=False)
    found = []
    for setting in (ROOMY, replace(ROOMY, max_num_batched_tokens=7), TIGHT, SWAPPING):
        for has_prefix_cache in (False, True):
            asked = replace(setting, kv_cache_dtype=kv_cache_dtype, has_prefix_cache=has_prefix_cache)
            with load(folder, asked) as engine:
                assert engine.model.kv_format == kv_cache_dtype
                found.append(answers(engine))
    assert all(each == found[0] for each in found)


def test_settings_that_cannot_be(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'swap' needs room"):
        EngineConfig(preemption_mode="swap")
    with pytest.raises(ConfigError, match="not a size"):
        EngineConfig(swap_space="lots")
    with pytest.raises(DoesNotFit, match="does not hold one request of 120 tokens, which takes"):
        Engine.load(EngineConfig(model=str(folder), memory="64MiB", max_model_len=120, swap_space=1024))
    windows = write_checkpoint(tmp_path / "windows", "qwen2_window", with_tokenizer=False)
    with pytest.raises(UnsupportedFeature, match="sliding windows"):
        Engine.load(EngineConfig(model=str(windows), memory="64MiB", swap_space="4MiB"))
