# SPDX-License-Identifier: Apache-2.0
"""Weights larger than the budget: the same bits, files that are reused, damage that is found, errors that lose one step only."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.checkpoints import CONFIGS, write_checkpoint
from tests.unit.engine.settings import FASTEST
from ziggurat.engine.config import EngineConfig
from ziggurat.engine.engine import Engine
from ziggurat.engine.layer_file import SUFFIX
from ziggurat.engine.sizing import open_model, size
from ziggurat.engine.types import GenerateRequest
from ziggurat.errors import ConfigError, DoesNotFit, ModelError
from ziggurat.memory.fit import SizeRequest
from ziggurat.scheduling.sampling import SamplingParams

NUM_LAYERS = 7
PROMPTS = [[5 + (7 * number + place) % 80 for place in range(20 + number)] for number in range(3)]


@pytest.fixture(scope="module", params=["qwen2", "gemma2", "mixtral"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    raw = {**CONFIGS[request.param], "num_hidden_layers": NUM_LAYERS}
    if "layer_types" in raw:
        raw["layer_types"] = ["sliding_attention", "full_attention"] * 3 + ["full_attention"]
    return write_checkpoint(tmp_path_factory.mktemp("model"), raw, dtype=torch.bfloat16, with_tokenizer=False)


def config(folder: Path, **settings: Any) -> EngineConfig:
    return EngineConfig(
        model=str(folder),
        max_model_len=64,
        max_num_seqs=3,
        max_num_batched_tokens=16,
        kernels=FASTEST,
        threads=1,
        **settings,
    )


def tight(folder: Path, offload: Path, num_layers: float = 1.0) -> EngineConfig:
    """A budget that holds so many layers of weights less than everything."""
    asked = config(folder, memory=64 << 20, offload_folder=offload)
    source = open_model(asked)
    roomy = size(asked, source, 64 << 20)
    layer = max(span.num_bytes for span in roomy.plan.layer_spans)
    needed = roomy.plan.fixed_bytes() + roomy.request.overhead_bytes
    from ziggurat.memory.fit import RESERVE_RATIO, sequence_bytes

    least = (needed + sequence_bytes(roomy.plan, 64) - num_layers * layer) / (1 - RESERVE_RATIO)
    return replace(asked, memory=int(least))


def answers(engine: Engine) -> dict[str, list[int]]:
    for number, prompt in enumerate(PROMPTS):
        params = SamplingParams(temperature=1.0, seed=number, max_tokens=12, ignore_eos=True)
        engine.add(GenerateRequest(request_id=str(number), prompt_ids=prompt, params=params))
    found: dict[str, list[int]] = {str(number): [] for number in range(len(PROMPTS))}
    while engine.has_work:
        for output in engine.step():
            assert output.error is None, output.error
            found[output.request_id] += [token.token_id for token in output.tokens]
    return found


def test_the_same_bits_and_the_file_is_reused(folder: Path, tmp_path: Path) -> None:
    with Engine.load(config(folder, memory="64MiB")) as engine:
        expected = answers(engine)
        assert engine.layers is None and engine.memory()["streaming"] is None
    asked = tight(folder, tmp_path / "offload")
    for is_first in (True, False):
        before = [path.stat().st_mtime_ns for path in (tmp_path / "offload").glob("*")]
        with Engine.load(asked) as engine:
            assert 2 < len(engine.fit.plan.streamed_layers) < NUM_LAYERS
            assert answers(engine) == expected
            report: Any = engine.memory()["streaming"]
            assert report["num_streamed_layers"] == len(engine.fit.plan.streamed_layers)
            # A round per step, and what has been read ahead.
            read = report["read_bytes"] - sum(
                span.num_bytes for span in engine.fit.plan.layer_spans if not span.is_streamed
            )
            assert engine.num_steps * report["step_bytes"] <= read <= (engine.num_steps + 1) * report["step_bytes"]
            assert engine.resources.ledger.used("ram") <= int(asked.memory or 0)
        (path,) = (tmp_path / "offload").glob("*")
        assert path.suffix == SUFFIX
        assert is_first == (before != [path.stat().st_mtime_ns])


def test_without_a_folder_the_error_names_it(folder: Path, tmp_path: Path) -> None:
    asked = tight(folder, tmp_path)
    with pytest.raises(DoesNotFit, match="--offload-folder"):
        Engine.load(replace(asked, offload_folder=None))
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(ConfigError, match="cannot write the packed layers"):
        Engine.load(replace(asked, offload_folder=file))


def test_damage_is_found_wherever_it_is(folder: Path, tmp_path: Path) -> None:
    asked = tight(folder, tmp_path)
    with Engine.load(asked) as engine:
        streamed = engine.fit.plan.streamed_layers
        spans = engine.fit.plan.layer_spans
    (path,) = tmp_path.glob(f"*{SUFFIX}")
    whole = path.read_bytes()
    start = len(whole) - sum(span.num_bytes for span in spans)

    def flip(layer: int) -> None:
        place = start + sum(span.num_bytes for span in spans[:layer]) + 100
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])

    resident = next(number for number in range(NUM_LAYERS) if number not in streamed)
    flip(resident)
    with pytest.raises(ModelError, match=f"layer {resident} in .* is damaged"):
        Engine.load(asked)
    flip(streamed[-1])
    with Engine.load(asked) as engine:
        engine.add(GenerateRequest(request_id="a", prompt_ids=PROMPTS[0], params=SamplingParams(max_tokens=2)))
        (output,) = [each for each in engine.step() if each.finish_reason]
        assert output.finish_reason == "error" and f"layer {streamed[-1]}" in str(output.error)
        # Mended while it runs, the next request is served.
        path.write_bytes(whole)
        assert answers(engine)
    path.write_bytes(whole[:-5000])
    with pytest.raises(ConfigError, match="cut off or of another model: delete it"):
        Engine.load(asked)
    path.write_bytes(b"what is this?\n" + whole)
    with pytest.raises(ConfigError, match="no file of packed layers"):
        Engine.load(asked)


def test_a_newer_version_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    asked = tight(folder, tmp_path)
    Engine.load(asked).close()
    (path,) = tmp_path.glob(f"*{SUFFIX}")
    data = path.read_bytes().replace(b'"version": 1', b'"version": 9', 1)
    path.write_bytes(data)
    with pytest.raises(ConfigError, match="has version 9, this Ziggurat writes 1"):
        Engine.load(asked)


def test_a_full_disk_leaves_nothing_behind(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigError, match="No space left on device. They take"):
        Engine.load(tight(folder, tmp_path))
    assert not list(tmp_path.iterdir())
    assert SizeRequest(memory_bytes=1).can_stream is False
