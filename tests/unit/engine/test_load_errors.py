# SPDX-License-Identifier: Apache-2.0
"""Checkpoints and settings that cannot be served: one clear error each, and nothing left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.checkpoints import CONFIGS, write_checkpoint
from ziggurat.engine.config import EngineConfig
from ziggurat.engine.engine import Engine
from ziggurat.engine.types import GenerateRequest
from ziggurat.errors import (
    ConfigError,
    DoesNotFit,
    ModelError,
    ModelNotFound,
    RequestError,
    UnknownArchitecture,
    UnsupportedFeature,
    ZigguratError,
)
from ziggurat.scheduling.sampling import SamplingParams

Damage = Callable[[Path], None]


def change_config(**changes: Any) -> Damage:
    def damage(folder: Path) -> None:
        raw = json.loads((folder / "config.json").read_text()) | changes
        (folder / "config.json").write_text(json.dumps(raw))

    return damage


def change_tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Damage:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return damage


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    os.truncate(path, path.stat().st_size - 100)


def only_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def broken_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")


def broken_generation_config(folder: Path) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"temperature": -1}))


CASES: dict[str, tuple[Damage, type[ZigguratError], str]] = {
    "architecture": (
        *(change_config(architectures=["LlamaForCausalML"]), UnknownArchitecture),
        "did you mean 'LlamaForCausalLM'",
    ),
    "missing tensor": (
        *(change_tensors(lambda t: t.pop("model.layers.1.mlp.up_proj.weight")), ModelError),
        "lacks tensor 'model.layers.1.mlp.up_proj.weight'",
    ),
    "wrong shape": (
        *(change_tensors(lambda t: t.update({"model.norm.weight": torch.ones(63)})), ModelError),
        r"'model.norm.weight' has shape \[63\], config.json implies \[64\]",
    ),
    "contradicting config": (change_config(num_hidden_layers=2), ModelError, "config.json contradicts the weights"),
    "contradicting heads": (change_config(num_key_value_heads=3), ModelError, "contradicts itself"),
    "truncated": (truncate, ModelError, "is truncated"),
    "pickle": (only_pickle, ModelError, "pickle weights.*convert them to safetensors"),
    "no weights": (no_weights, ModelNotFound, r"holds no \*.safetensors"),
    "custom code": (change_config(auto_map={"AutoModel": "x.py"}), UnsupportedFeature, "never runs code"),
    "tokenizer": (broken_tokenizer, ModelError, "tokenizer.json is damaged"),
    "generation config": (
        broken_generation_config,
        ModelError,
        "generation_config.json: temperature must be at least 0",
    ),
}


@pytest.mark.parametrize("case", sorted(CASES))
def test_damaged_checkpoints(tmp_path: Path, case: str) -> None:
    damage, error, match = CASES[case]
    damage(write_checkpoint(tmp_path))
    with pytest.raises(error, match=match) as caught:
        Engine.load(EngineConfig(model=str(tmp_path), memory="48MiB"))
    assert "\n" not in str(caught.value)


def test_settings_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedFeature, match="device 'cuda' is not built yet"):
        EngineConfig(device="cuda")
    with pytest.raises(UnsupportedFeature, match="trust_remote_code is refused"):
        EngineConfig(trust_remote_code=True)
    folder = str(write_checkpoint(tmp_path))
    with pytest.raises(DoesNotFit, match="does not fit in 1.00 MiB") as caught:
        Engine.load(EngineConfig(model=folder, memory="1MiB"))
    assert caught.value.needed_bytes > 1 << 20
    with pytest.raises(ConfigError, match="unknown batch planner 'saratih', did you mean 'sarathi'"):
        Engine.load(EngineConfig(model=folder, memory="48MiB", planner="saratih"))
    with pytest.raises(ConfigError, match="unknown eviction policy 'lur', did you mean 'lru'"):
        Engine.load(EngineConfig(model=folder, memory="48MiB", eviction_policy="lur"))
    with pytest.raises(ConfigError, match="unknown scheduling policy 'fifs', did you mean 'fcfs'"):
        Engine.load(EngineConfig(model=folder, memory="48MiB", scheduling_policy="fifs"))


def test_a_priority_is_refused_where_nobody_looks_at_it(tmp_path: Path) -> None:
    folder = str(write_checkpoint(tmp_path))
    request = GenerateRequest(request_id="a", prompt_ids=[1], params=SamplingParams(max_tokens=1), priority=1)
    with Engine.load(EngineConfig(model=folder, memory="48MiB")) as engine:
        with pytest.raises(RequestError, match="needs a server with --scheduling-policy priority"):
            engine.add(request)
        assert not engine.has_work
    with Engine.load(EngineConfig(model=folder, memory="48MiB", scheduling_policy="priority")) as engine:
        engine.add(request)
        assert engine.has_work


def test_interrupting_the_loading_gives_everything_back(tmp_path: Path) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    folder = write_checkpoint(tmp_path)
    maps_before = Path("/proc/self/maps").read_text().count("\n")
    for _ in range(5):
        with pytest.raises(KeyboardInterrupt):
            Engine.load(EngineConfig(model=str(folder), memory="1GiB"), progress=interrupt)
    assert Path("/proc/self/maps").read_text().count("\n") < maps_before + 5


def test_generation_defaults_reach_the_model(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    raw = {"eos_token_id": [7, 9, 100000], "temperature": 0.6, "top_p": 0.95, "do_sample": True, "max_length": 3}
    (tmp_path / "generation_config.json").write_text(json.dumps(raw))
    with Engine.load(EngineConfig(model=str(tmp_path), memory="48MiB", served_model_name="tiny")) as engine:
        assert engine.model.eos_ids == (1, 7, 9)
        assert engine.model.sampling_defaults == {"temperature": 0.6, "top_p": 0.95}
        assert engine.model.name == "tiny"


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_dummy_weights_of_a_bare_config(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS[name]))
    with Engine.load(
        EngineConfig(model=str(tmp_path), memory="48MiB", load_format="dummy", dtype="bfloat16")
    ) as engine:
        assert engine.tokenizer is None and engine.chat_template is None
        assert (engine.model.weight_format, engine.model.kv_format) == ("bf16", "bf16")


def test_a_made_up_cache_serves_offline(tmp_path: Path) -> None:
    """HF_HOME with one repository in it, offline: the folder is found; another name is not."""
    hub = tmp_path / "hub" / "models--org--tiny"
    write_checkpoint(hub / "snapshots" / ("a" * 40))
    (hub / "refs").mkdir()
    (hub / "refs" / "main").write_text("a" * 40)
    code = (
        "from ziggurat import LLM, SamplingParams\n"
        "from ziggurat.errors import ModelNotFound\n"
        "with LLM('org/tiny', memory='48MiB') as llm:\n"
        "    (output,) = llm.generate('the', SamplingParams(max_tokens=2, ignore_eos=True))\n"
        "    assert len(output.outputs[0].token_ids) == 2\n"
        "try:\n    LLM('org/other')\nexcept ModelNotFound as error:\n    print(error)\n"
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.getcwd()}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "org/other" in done.stdout and str(tmp_path) in done.stdout
