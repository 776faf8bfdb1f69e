# SPDX-License-Identifier: Apache-2.0
"""Adapters in training: what they compute, what they cost, stop and resume, and that the engine serves what was trained."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.unit.engine.settings import FASTEST
from ziggurat.engine.config import EngineConfig
from ziggurat.engine.engine import Engine
from ziggurat.engine.types import GenerateRequest
from ziggurat.errors import ConfigError, ModelError
from ziggurat.programs.architectures import build_program
from ziggurat.programs.mos import num_parameters
from ziggurat.scheduling.sampling import SamplingParams
from ziggurat.training.config import TrainingConfig, load_recipe, parse_recipe
from ziggurat.training.evaluate import held_out_loss
from ziggurat.training.export import load_exported
from ziggurat.training.interpreter import ProgramModel
from ziggurat.training.lowrank import AdapterConfig, LowRankUpdates, new_updates, save_adapter, target_sizes
from ziggurat.training.run import run_training

TINY = dict(load_recipe("tiny").model)
TARGETS = ("q_proj", "o_proj", "down_proj")
MOS = AdapterConfig(kind="mos", rank=3, alpha=6.0, targets=TARGETS, equivalent_rank=2, num_shards=2, private_rank=1)


def new(config: AdapterConfig, seed: int = 1, *, is_trained: bool = True) -> LowRankUpdates:
    updates = new_updates(build_program(TINY, "train"), config, seed)
    if is_trained:
        noise = torch.Generator().manual_seed(seed)
        for parameter in updates.parameters():
            parameter.data = torch.randn(parameter.shape, generator=noise) * 0.1
    return updates


def test_a_fresh_adapter_changes_nothing_and_a_trained_one_adds_its_product() -> None:
    name, x = "model.layers.1.self_attn.q_proj.weight", torch.randn(5, 64)
    for config in (AdapterConfig(rank=4, targets=TARGETS), MOS):
        fresh, trained = new(config, is_trained=False), new(config)
        assert torch.equal(fresh.delta(name, x), torch.zeros(5, 64))  # type: ignore[arg-type]
        a, b = trained.matrices(name)
        expected = config.alpha / config.rank * (x.double() @ a.double().T @ b.double().T)
        assert torch.allclose(trained.delta(name, x), expected.float(), atol=1e-6)  # type: ignore[arg-type]
        assert trained.delta("model.layers.1.mlp.up_proj.weight", x) is None


def test_all_rows_private_is_plain_lora_bit_by_bit() -> None:
    config = AdapterConfig(
        kind="mos", rank=2, alpha=4, targets=TARGETS, equivalent_rank=2, num_shards=1, private_rank=2
    )
    mos, lora = new(config), new(dataclasses.replace(config, kind="lora"))
    with torch.no_grad():
        for name in lora.sizes:
            for mine, theirs in zip(lora.matrices(name), mos.matrices(name), strict=True):
                mine.copy_(theirs)
    for name, (_, columns) in lora.sizes.items():
        x = torch.randn(7, columns)
        assert torch.equal(mos.delta(name, x), lora.delta(name, x))  # type: ignore[arg-type]
    count = sum(parameter.numel() for parameter in mos.parameters())
    assert count == sum(parameter.numel() for parameter in lora.parameters())


def test_parameters_follow_the_formula() -> None:
    mos = new(MOS)
    features = {name.split(".")[-2]: (columns, rows) for name, (rows, columns) in mos.sizes.items()}
    assert sum(parameter.numel() for parameter in mos.parameters()) == num_parameters(MOS.shape(2), features)


def test_a_shard_gathers_the_gradients_of_all_its_uses() -> None:
    mos = new(MOS).double()
    name, other = (f"model.layers.{layer}.self_attn.q_proj.weight" for layer in (0, 1))
    x = torch.randn(4, 64, dtype=torch.float64)
    pool = mos.get_parameter("q_proj__pool_a")

    def loss() -> torch.Tensor:
        return (mos.delta(name, x) ** 2).sum() + mos.delta(other, x).sin().sum()  # type: ignore[operator, union-attr]

    loss().backward()
    assert pool.grad is not None
    for shard, place in ((0, 3), (5, 0), (7, 11)):
        with torch.no_grad():
            pool[shard, place] += 1e-6
            above = loss()
            pool[shard, place] -= 2e-6
            below = loss()
            pool[shard, place] += 1e-6
        assert float(pool.grad[shard, place]) == pytest.approx(float(above - below) / 2e-6, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("as_lora", [False, True])
def test_the_engine_serves_what_was_trained(tmp_path: Path, as_lora: bool) -> None:
    base = tmp_path / "base"
    model = write_base(base)
    model.updates = new(MOS)
    save_adapter(model.updates, tmp_path / "adapter", "base", as_lora=as_lora, dtype=torch.float32)
    kind = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["peft_type"]
    assert kind == ("LORA" if as_lora else "MOS")
    prompt = list(range(5, 40))
    with torch.no_grad():
        logprobs = torch.log_softmax(model(torch.tensor([prompt]))[-1].double(), -1)
    config = EngineConfig(
        model=str(base),
        memory="64MiB",
        max_model_len=128,
        kernels=FASTEST,
        threads=1,
        lora_modules=(f"mine={tmp_path / 'adapter'}",),
    )
    with Engine.load(config) as engine:
        params = SamplingParams(temperature=0.0, max_tokens=1, logprobs=0)
        engine.add(GenerateRequest(request_id="a", prompt_ids=prompt, params=params, adapter="mine"))
        (token,) = [token for _ in range(3) for output in engine.step() for token in output.tokens]
    assert token.token_id == int(logprobs.argmax())
    assert token.logprob == pytest.approx(float(logprobs.max()), abs=1e-3)


def write_base(folder: Path) -> ProgramModel:
    from safetensors.torch import save_file

    from ziggurat.training.initial import random_weights
    from ziggurat.training.run import load_or_make_tokenizer

    folder.mkdir()
    program = build_program(TINY, "train")
    model = ProgramModel(program)
    model.load_weights({name: 4 * weight for name, weight in random_weights(program, 3).items()})
    save_file({name: weight.detach() for name, weight in model.named_weights().items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**TINY, "dtype": "float32"}))
    load_or_make_tokenizer(load_recipe("tiny"), folder)
    for path in (folder / "tokenizer").iterdir():
        path.rename(folder / path.name)
    return model


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "base"
    write_base(folder)
    return folder


def recipe(kind: str, base: Path, text: Path, **changes: Any) -> TrainingConfig:
    config = load_recipe(kind)
    (stage,) = config.stages
    stage = dataclasses.replace(stage, lengths_tokens=(64,), tokens_per_step=128, max_tokens=128 * 12)
    assert config.adapter is not None
    adapter = dataclasses.replace(config.adapter, rank=2)
    values = {"base": str(base), "stages": (stage,), "adapter": adapter, "texts": (str(text),), **changes}
    return dataclasses.replace(config, **values)


@pytest.mark.parametrize("kind", ["lora", "mos"])
def test_a_run_learns_leaves_the_base_alone_and_goes_on_where_it_stopped(kind: str, base: Path, tmp_path: Path) -> None:
    text = tmp_path / "mine.txt"
    text.write_text("the red fox sees the blue bird and the bird sees the fox. " * 60, encoding="utf-8")
    whole = run_training(recipe(kind, base, text), tmp_path / "whole")
    first = run_training(recipe(kind, base, text), tmp_path / "parts", max_steps=5)
    assert not first.is_finished and first.model_folder is None
    parts = run_training(recipe(kind, base, text), tmp_path / "parts", resume=True)
    assert whole.model_folder is not None and parts.model_folder is not None
    mine, theirs = (
        load_file(folder / "adapter_model.safetensors") for folder in (whole.model_folder, parts.model_folder)
    )
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
    model, tokenizer = load_exported(base)
    untrained = held_out_loss(model, tokenizer, [str(text)])
    assert whole.held_out is not None and whole.held_out["text"] < untrained["text"] - 0.1
    assert not (whole.model_folder / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"targets": ["q_porj"]}, "no linears named 'q_porj', did you mean 'q_proj'"),
        ({"rank": 0}, "must be above 0"),
        ({"kind": "loha"}, "must be 'lora' or 'mos'"),
        ({"kind": "mos", "num_shards": 5, "private_rank": 0, "rank": 2}, "64 is not divisible by 5 shards"),
    ],
)
def test_adapters_that_cannot_be(change: dict[str, Any], words: str) -> None:
    raw = {"name": "x", "base": "embedded", "adapter": change, "stages": [STAGE]}
    config = parse_recipe(raw)
    assert config.adapter is not None
    with pytest.raises(ConfigError, match=words):
        new_updates(build_program(TINY, "train"), config.adapter, 0)


STAGE = {
    "name": "s",
    "lengths_tokens": [64],
    "tokens_per_step": 64,
    "max_tokens": 64,
    "learning_rate": 1e-3,
    "mixture": [{"source": "text", "share": 1.0}],
}


def test_a_recipe_trains_a_model_or_an_adapter() -> None:
    for raw in ({"base": "embedded"}, {"adapter": {}}, {}):
        with pytest.raises(ConfigError, match="base and"):
            parse_recipe({"name": "x", "stages": [STAGE], **raw})


def test_sources_of_other_tokenizers_are_refused(base: Path, tmp_path: Path) -> None:
    text = tmp_path / "mine.txt"
    text.write_text("word " * 600)
    other = tmp_path / "other"
    other.mkdir()
    for path in base.glob("*.*"):
        (other / path.name).write_bytes(path.read_bytes())
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["added_tokens"] = []
    first = next(iter(tokenizer["model"]["vocab"]))
    tokenizer["model"]["vocab"] = {
        ("<other>" if name == first else name): n for name, n in tokenizer["model"]["vocab"].items()
    }
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    config = recipe("lora", other, text)
    (stage,) = config.stages
    mixture = (*stage.mixture, dataclasses.replace(stage.mixture[0], source="prose"))
    with pytest.raises(ConfigError, match="use the source 'text' alone"):
        run_training(
            dataclasses.replace(config, stages=(dataclasses.replace(stage, mixture=mixture),)), tmp_path / "out"
        )


def test_bases_that_cannot_be_adapted(base: Path, tmp_path: Path) -> None:
    text = tmp_path / "mine.txt"
    text.write_text("word " * 600)
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"GGUF" + bytes(60))
    with pytest.raises(ConfigError, match="is a GGUF file"):
        run_training(recipe("lora", gguf, text), tmp_path / "one")
    other = tmp_path / "other"
    other.mkdir()
    for path in base.glob("*.*"):
        (other / path.name).write_bytes(path.read_bytes())
    tensors = load_file(other / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, other / "model.safetensors")
    with pytest.raises(ModelError, match="lacks tensor 'model.layers.1.mlp.up_proj.weight'"):
        run_training(recipe("lora", other, text), tmp_path / "two")


def test_targets_are_found_in_every_layer() -> None:
    sizes = target_sizes(build_program(TINY, "train"), ("q_proj", "down_proj"))
    assert sizes["model.layers.1.mlp.down_proj.weight"] == (64, 128) and len(sizes) == 4
