# SPDX-License-Identifier: Apache-2.0
"""Mixtures of shards in the engine: the bits of the plain adapter that they amount to, in far fewer blocks; broken ones are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.adapters import write_mos, write_plain
from tests.checkpoints import write_checkpoint
from tests.unit.engine.test_adapters import PROMPTS, config, run
from ziggurat.engine.engine import Engine
from ziggurat.errors import ModelError, UnsupportedFeature

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "down_proj")
LAYERS = 3


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("base"), "qwen2", with_tokenizer=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_bits_are_those_of_the_plain_adapter(base: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    mos = write_mos(tmp_path / "mos", base, num_layers=LAYERS, targets=TARGETS, dtype=dtype)
    engine = Engine.load(config(base, {"mos": mos, "plain": write_plain(tmp_path / "plain", mos)}))
    found = run(engine, {name: (PROMPTS[0], name) for name in ("mos", "plain")} | {"base": (PROMPTS[0], "")})
    assert found["mos"] == found["plain"] != found["base"]
    rows = {row["name"]: row for row in engine.adapters.report()}
    assert rows["mos"]["rank"] == 4 and rows["mos"]["is_loaded"]
    engine.close()


def test_pools_take_the_room_of_their_equivalent_rank(base: Path, tmp_path: Path) -> None:
    kinds = {"num_layers": LAYERS, "rank": 16, "equivalent_rank": 6, "targets": ("q_proj",)}
    mos = write_mos(tmp_path / "mos", base, **kinds)  # type: ignore[arg-type]
    plain = write_plain(tmp_path / "plain", mos)
    sizes = [sum(t.nbytes for t in load_file(f / "adapter_model.safetensors").values()) for f in (mos, plain)]
    engine = Engine.load(config(base, {"mos": mos, "plain": plain}))
    rows = {row["name"]: row["num_bytes"] for row in engine.adapters.report()}
    assert [rows["mos"], rows["plain"]] == sizes
    assert sizes[0] < sizes[1] * 6 / 16 + 4096
    engine.close()


def broken(base: Path, tmp_path: Path, change: str) -> Path:
    folder = write_mos(tmp_path / "mos", base, num_layers=LAYERS, targets=TARGETS)
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    index = next(name for name in tensors if name.endswith("mos_A.index"))
    if change == "outside":
        tensors[index][0, 0] = 1000
    elif change == "no pool":
        del tensors["q_proj.pool_b"]
    elif change == "rank":
        tensors[index] = tensors[index][:3].contiguous()
    elif change == "module":
        tensors["base_model.model.model.layers.9.self_attn.q_proj.mos_A.index"] = tensors[index].clone()
    elif change == "tensor":
        tensors["router.weight"] = torch.zeros(4)
    elif change == "nan":
        tensors["q_proj.pool_a"][0, 0] = torch.nan
    save_file(tensors, path)
    return folder


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ("no pool", ModelError, "lacks an index, or 'q_proj' a pool"),
        ("rank", ModelError, "which do not make 4 rows"),
        ("module", ModelError, "made for another base model"),
        ("tensor", UnsupportedFeature, "no pool and no index"),
    ],
)
def test_a_broken_one_is_refused_when_it_is_registered(
    base: Path, tmp_path: Path, change: str, error: type[Exception], words: str
) -> None:
    engine = Engine.load(config(base, {}))
    with pytest.raises(error, match=words):
        engine.adapters.register("mos", broken(base, tmp_path, change))
    assert engine.adapters.names() == ()
    engine.close()


@pytest.mark.parametrize(("change", "words"), [("outside", "points outside its"), ("nan", "NaN or infinity")])
def test_broken_numbers_are_refused_when_they_are_read(base: Path, tmp_path: Path, change: str, words: str) -> None:
    engine = Engine.load(config(base, {"mos": broken(base, tmp_path, change)}))
    before = engine.store.stats()
    with pytest.raises(ModelError, match=words):
        run(engine, {"a": (PROMPTS[0], "mos")})
    assert engine.store.stats() == before
    assert run(engine, {"b": (PROMPTS[0], "")})["b"]
    engine.close()


def test_shards_that_kernels_cannot_take_are_refused(base: Path, tmp_path: Path) -> None:
    folder = write_mos(tmp_path / "mos", base, num_layers=LAYERS, targets=("q_proj",), num_shards=16)
    engine = Engine.load(config(base, {}))
    with pytest.raises(UnsupportedFeature, match="multiples of 8"):
        engine.adapters.register("mos", folder)
    raw = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**raw, "peft_type": "LOHA"}))
    with pytest.raises(UnsupportedFeature, match="LORA and MOS"):
        engine.adapters.register("mos", folder)
    engine.close()
