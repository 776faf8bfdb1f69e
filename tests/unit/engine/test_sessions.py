# SPDX-License-Identifier: Apache-2.0
"""Sessions: kept against eviction until their time, saved and restored bit by bit, refused where they are no good."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.adapters import write_adapter
from tests.checkpoints import write_checkpoint
from tests.unit.engine.settings import FASTEST
from ziggurat.clock import VirtualClock
from ziggurat.engine.config import EngineConfig
from ziggurat.engine.engine import Engine
from ziggurat.engine.session_file import SUFFIX
from ziggurat.engine.sessions import Sessions
from ziggurat.engine.types import GenerateRequest
from ziggurat.errors import ConfigError, RequestError, UnsupportedFeature
from ziggurat.memory.fit import smallest_budget
from ziggurat.scheduling.sampling import SamplingParams

PROMPT = [5 + (7 * place) % 80 for place in range(40)]
CONFIG = EngineConfig(
    memory="32MiB",
    max_model_len=96,
    block_size=8,
    max_num_seqs=4,
    max_num_batched_tokens=24,
    kernels=FASTEST,
    threads=1,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model"), "qwen2", with_tokenizer=False)


def ask(engine: Engine, prompt: list[int], *, max_tokens: int = 9, **fields: Any) -> list[int]:
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
    engine.add(GenerateRequest(request_id=str(engine.num_steps), prompt_ids=prompt, params=params, **fields))
    found: list[int] = []
    while engine.has_work:
        for output in engine.step():
            assert output.error is None, output.error
            found += [token.token_id for token in output.tokens]
    engine.store.audit()
    return found


def hits(engine: Engine) -> int:
    return int(engine.core.counters.prefix_hit_tokens)


def crowd_out(engine: Engine) -> None:
    """Fill the pool with others' prefixes."""
    total = engine.store.total_blocks()[0]
    for number in range(total // 8 + 2):
        ask(engine, [(number * 13 + place) % 90 + 3 for place in range(80)], max_tokens=1)


def small(folder: Path, **settings: Any) -> EngineConfig:
    """A pool with little beside one long sequence."""
    config = replace(CONFIG, model=str(folder), **settings)
    with Engine.load(config) as engine:
        least = smallest_budget(engine.fit.plan, engine.fit.request.overhead_bytes, 96)
        block = engine.fit.plan.block_bytes(engine.fit.plan.program.kv_groups()[0])
    return replace(config, memory=least + 14 * (block + 1024))


def test_a_kept_session_outlives_the_crowd_and_another_one_does_not(folder: Path) -> None:
    clock = VirtualClock()
    with Engine.load(small(folder), clock=clock) as engine:
        kept = PROMPT + ask(engine, PROMPT, session_id="kept", client="alice", keep_s=60.0)
        plain = PROMPT[::-1] + ask(engine, PROMPT[::-1], session_id="plain", client="alice")
        rows = {row["session_id"]: row for row in engine.memory()["sessions_kept"]}  # type: ignore[attr-defined]
        assert rows["kept"]["num_pinned_blocks"] == 6 and rows["plain"]["num_pinned_blocks"] == 0
        crowd_out(engine)
        before = hits(engine)
        ask(engine, [*plain, 4])
        assert hits(engine) == before
        ask(engine, [*kept, 4])
        assert hits(engine) == before + 48
        # Its time comes; then it can leave like all others.
        clock.sleep_until(61.0 + clock.now())
        ask(engine, [9, 9, 9])
        assert engine.sessions.num_blocks == 0
        crowd_out(engine)
        before = hits(engine)
        ask(engine, [*kept, 4])
        assert hits(engine) == before


def test_pins_leave_room_for_the_longest_request(folder: Path) -> None:
    with Engine.load(small(folder)) as engine:
        for number in range(8):
            ask(engine, [number + 5 + place for place in range(40)], session_id=f"s{number}", keep_s=600.0)
            pinned = engine.sessions.num_blocks
            assert pinned + engine.store.peak_blocks(96)[0] <= engine.store.total_blocks()[0]
        rows = engine.sessions.report(0.0)
        assert [row["num_pinned_blocks"] > 0 for row in rows] == [False] * 6 + [True] * 2, "the oldest gave way"
        assert len(ask(engine, [3] * 80, max_tokens=16)) == 16


@pytest.mark.parametrize("kv_cache_dtype", ["auto", "fp16"])
def test_saved_and_restored_in_another_process_it_gives_the_same_bits(
    folder: Path, tmp_path: Path, kv_cache_dtype: str
) -> None:
    path = tmp_path / "deep" / f"s{SUFFIX}"
    config = replace(CONFIG, model=str(folder), kv_cache_dtype=kv_cache_dtype)
    with Engine.load(config) as engine:
        history = PROMPT + ask(engine, PROMPT, session_id="s", client="a")
        saved = engine.save_session("a", "s", path)
        assert saved == {"num_tokens": 48, "num_bytes": path.stat().st_size}
        expected = ask(engine, [*history, 4])
    with Engine.load(config) as engine:
        assert engine.restore_session("a", "s", "", path) == {"num_tokens": 48, "num_lost_tokens": 0}
        assert ask(engine, [*history, 4]) == expected
        assert hits(engine) == 48
        # What is cached already is shared, not doubled; and it can be saved again.
        used = engine.store.stats()[0].cached
        assert engine.restore_session("a", "s", "", path)["num_tokens"] == 48
        assert engine.store.stats()[0].cached == used
        assert engine.save_session("a", "s", tmp_path / f"t{SUFFIX}")["num_tokens"] == 48
        engine.store.audit()


def test_a_session_of_another_model_format_or_adapter_is_refused(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / f"s{SUFFIX}"
    adapter = write_adapter(tmp_path / "adapter", folder)
    modules = (f"tuned={adapter}",)
    config = replace(CONFIG, model=str(folder), lora_modules=modules)
    with Engine.load(config) as engine:
        ask(engine, PROMPT, session_id="s", client="a", adapter="tuned")
        engine.save_session("a", "s", path)
        with pytest.raises(RequestError, match="was saved with another adapter"):
            engine.restore_session("a", "s", "", path)
        assert engine.restore_session("a", "s", "tuned", path)["num_tokens"] == 48
    other = write_checkpoint(tmp_path / "other", "qwen2", with_tokenizer=False, seed=1)
    for changes, word in (
        ({"model": str(other), "lora_modules": ()}, "model"),
        ({"kv_cache_dtype": "fp16"}, "kv_format"),
        ({"block_size": 4}, "block_size"),
    ):
        with Engine.load(replace(config, **changes)) as engine, pytest.raises(RequestError, match=f"another {word}"):
            engine.restore_session("a", "s", "" if word == "model" else "tuned", path)


def test_damage_ends_what_is_restored_before_it(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / f"s{SUFFIX}"
    config = replace(CONFIG, model=str(folder))
    with Engine.load(config) as engine:
        history = PROMPT + ask(engine, PROMPT, session_id="s")
        engine.save_session("", "s", path)
        expected = ask(engine, [*history, 4])
        block = engine.fit.plan.block_bytes(engine.fit.plan.program.kv_groups()[0])
    whole = path.read_bytes()
    for place, lost in ((len(whole) - 2 * block - 5, 24), (len(whole) - 1, 8), (len(whole) - 6 * block + 3, 48)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with Engine.load(config) as engine:
            assert engine.restore_session("", "s", "", path) == {"num_tokens": 48 - lost, "num_lost_tokens": lost}
            assert ask(engine, [*history, 4]) == expected
    path.write_bytes(whole[: len(whole) - block - 1])
    with Engine.load(config) as engine:
        assert engine.restore_session("", "s", "", path)["num_lost_tokens"] == 16
        for content, words in (
            (b"hello", "is no saved session"),
            (whole.replace(b'"version":2', b'"version":7', 1), "has version 7"),
        ):
            path.write_bytes(content)
            with pytest.raises(RequestError, match=words):
                engine.restore_session("", "s", "", path)
        path.unlink()
        with pytest.raises(RequestError, match="no session is saved"):
            engine.restore_session("", "s", "", path)


def test_clients_have_sessions_of_their_own_and_misuse_is_named(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"s{SUFFIX}"
    with Engine.load(replace(CONFIG, model=str(folder))) as engine:
        ask(engine, PROMPT, session_id="s", client="a", keep_s=9.0)
        ask(engine, PROMPT[::-1], session_id="s", client="b")
        assert [(row["client"], row["num_tokens"]) for row in engine.sessions.report(0.0)] == [("a", 49), ("b", 49)]
        engine.forget_session("a", "s")
        with pytest.raises(RequestError, match="no session 's' is known"):
            engine.save_session("a", "s", path)
        engine.reset_prefix_cache()
        with pytest.raises(RequestError, match="cached any more: ask with keep_s"):
            engine.save_session("b", "s", path)
        ask(engine, PROMPT, session_id="s", client="a")

        def full(_: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(ConfigError, match="No space left on device; the session takes"):
            engine.save_session("a", "s", path)
        assert not list(tmp_path.iterdir())
    with pytest.raises(RequestError, match="send session_id too"):
        GenerateRequest(request_id="x", prompt_ids=[1], params=SamplingParams(), keep_s=3.0)


def test_remembered_tokens_are_bounded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ziggurat.engine.sessions.MAX_REMEMBERED_TOKENS", 150)
    with Engine.load(replace(CONFIG, model=str(folder))) as engine:
        for number in range(6):
            ask(engine, [number + 5 + place for place in range(40)], session_id=f"s{number}")
        assert [row["session_id"] for row in engine.sessions.report(0.0)] == ["s3", "s4", "s5"]
        assert isinstance(engine.sessions, Sessions)


def test_models_with_windows_say_that_they_cannot(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, "gemma2", dtype=torch.bfloat16, with_tokenizer=False)
    with Engine.load(replace(CONFIG, model=str(folder))) as engine:
        ask(engine, PROMPT, session_id="s", keep_s=5.0)
        with pytest.raises(UnsupportedFeature, match="sliding windows"):
            engine.save_session("", "s", tmp_path / "s")
