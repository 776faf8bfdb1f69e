# SPDX-License-Identifier: Apache-2.0
"""LoRA adapters in the engine: the numbers of merged weights, mixed batches, blocks from the KV pool, and refusals that harm nobody."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.adapters import TARGETS, write_adapter, write_merged
from tests.checkpoints import write_checkpoint
from tests.unit.engine.settings import FASTEST
from ziggurat.engine.config import EngineConfig
from ziggurat.engine.engine import Engine
from ziggurat.engine.llm import LLM
from ziggurat.engine.types import EmbedRequest, GenerateRequest
from ziggurat.errors import ConfigError, DoesNotFit, ModelError, QueueFull, RequestError, UnsupportedFeature
from ziggurat.scheduling.sampling import SamplingParams

PROMPTS = [[5 + (7 * number + place) % 80 for place in range(20 + number)] for number in range(4)]
CONFIG = EngineConfig(
    memory="32MiB",
    max_model_len=64,
    block_size=16,
    max_num_seqs=6,
    max_num_batched_tokens=24,
    kernels=FASTEST,
    threads=1,
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("base"), "qwen2", with_tokenizer=False)


@pytest.fixture(scope="module")
def folders(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Adapters of different ranks, targets and types."""
    root = tmp_path_factory.mktemp("adapters")
    return {
        "small": write_adapter(root / "small", base, rank=2, seed=1),
        "mixed": write_adapter(root / "mixed", base, rank=4, seed=2, ranks={"q_proj": 16, "down_proj": 1}),
        "half": write_adapter(root / "half", base, rank=8, seed=3, dtype=torch.bfloat16, targets=("q_proj", "o_proj")),
        "scaled": write_adapter(root / "scaled", base, rank=8, seed=4, size=0.05, config={"use_rslora": True}),
    }


def config(base: Path, folders: Mapping[str, Path], **settings: Any) -> EngineConfig:
    modules = tuple(f"{name}={folder}" for name, folder in folders.items())
    return replace(CONFIG, model=str(base), lora_modules=modules, **settings)


def run(
    engine: Engine, wanted: Mapping[str, tuple[list[int], str]], **params: Any
) -> dict[str, list[tuple[int, float]]]:
    """Tokens with their log-probabilities of (prompt, adapter) requests, served together."""
    found: dict[str, list[tuple[int, float]]] = {}
    for name, (prompt, adapter) in wanted.items():
        asked = SamplingParams(temperature=0.0, max_tokens=6, logprobs=0, ignore_eos=True, **params)
        engine.add(GenerateRequest(request_id=name, prompt_ids=prompt, params=asked, adapter=adapter))
        found[name] = []
    while engine.has_work:
        for output in engine.step():
            assert output.error is None, output.error
            found[output.request_id] += [(token.token_id, token.logprob or 0.0) for token in output.tokens]
    engine.store.audit()
    return found


@pytest.mark.parametrize("name", ["small", "mixed", "half", "scaled"])
def test_the_numbers_are_those_of_merged_weights(
    base: Path, folders: dict[str, Path], name: str, tmp_path: Path
) -> None:
    merged = write_merged(tmp_path / "merged", base, folders[name])
    with Engine.load(replace(CONFIG, model=str(merged))) as engine:
        expected = run(engine, {str(number): (prompt, "") for number, prompt in enumerate(PROMPTS)})
    with Engine.load(config(base, folders)) as engine:
        found = run(engine, {str(number): (prompt, name) for number, prompt in enumerate(PROMPTS)})
        plain = run(engine, {str(number): (prompt, "") for number, prompt in enumerate(PROMPTS)})
    for key, tokens in expected.items():
        assert [token for token, _ in tokens] == [token for token, _ in found[key]]
        for (_, want), (_, have) in zip(tokens, found[key], strict=True):
            assert have == pytest.approx(want, abs=1e-4)
    assert plain != found


def test_a_mixed_batch_gives_each_the_bits_it_has_alone(base: Path, folders: dict[str, Path]) -> None:
    names = ["", *folders, ""]
    wanted = {f"r{index}": (PROMPTS[index % 4], name) for index, name in enumerate(names)}
    with Engine.load(config(base, folders)) as engine:
        together = run(engine, wanted)
        for order in (list(wanted), list(wanted)[::-1]):
            again = run(engine, {key: wanted[key] for key in order})
            assert again == together
    for key, asked in wanted.items():
        with Engine.load(config(base, folders, max_num_batched_tokens=7)) as engine:
            assert run(engine, {key: asked})[key] == together[key]


def test_a_prefix_is_shared_with_the_same_adapter_only(base: Path, folders: dict[str, Path]) -> None:
    with Engine.load(config(base, folders)) as engine:
        first = run(engine, {"a": (PROMPTS[3], "small")})
        hits = engine.core.counters.prefix_hit_tokens
        other = run(engine, {"b": (PROMPTS[3], "mixed"), "c": (PROMPTS[3], "")})
        assert engine.core.counters.prefix_hit_tokens == hits == 0
        assert run(engine, {"d": (PROMPTS[3], "small")})["d"] == first["a"]
        assert engine.core.counters.prefix_hit_tokens == 16
        assert other["b"] != first["a"] != other["c"]


def test_adapters_take_blocks_of_the_pool_by_their_true_rank_and_give_them_back(
    base: Path, folders: dict[str, Path]
) -> None:
    with Engine.load(config(base, folders)) as engine:
        assert engine.adapters.num_blocks == 0 and engine.adapters.num_loads == 0
        for name in folders:
            run(engine, {name: (PROMPTS[0], name)})
        rows: Any = engine.memory()["adapters"]
        block = engine.fit.plan.block_bytes(engine.fit.plan.program.kv_groups()[0])
        for row in rows:
            size = sum(path.stat().st_size for path in folders[row["name"]].glob("*.safetensors"))
            assert row["is_loaded"] and row["num_bytes"] <= size and row["num_continuations"] == 0
            assert row["num_bytes"] <= row["num_blocks"] * block < 2 * row["num_bytes"] + 2 * block
        used = sum(stats.used for stats in engine.store.stats())
        assert used == sum(row["num_blocks"] for row in rows) == engine.adapters.num_blocks
        engine.adapters.make_room(0)
        assert sum(stats.used for stats in engine.store.stats()) == 0
        run(engine, {"again": (PROMPTS[0], "small")})
        assert engine.adapters.num_loads == len(folders) + 1


def tight(base: Path, folders: dict[str, Path], spare: int) -> Engine:
    """An engine whose pool has so many blocks beside one long sequence."""
    engine = Engine.load(config(base, folders))
    block = engine.fit.plan.block_bytes(engine.fit.plan.program.kv_groups()[0])
    needed = engine.store.peak_blocks(64)[0] + spare
    have = engine.fit.num_blocks[0]
    from ziggurat.memory.fit import BLOCK_METADATA_BYTES, RESERVE_RATIO

    cut = (have - needed) * (block + BLOCK_METADATA_BYTES) / (1 - RESERVE_RATIO)
    engine.set_memory(int(engine.fit.request.memory_bytes - cut) + 64)
    assert engine.fit.num_blocks[0] == needed
    return engine


def test_who_is_not_used_leaves_for_others_and_who_is_used_stays(base: Path, folders: dict[str, Path]) -> None:
    first, second = "mixed", "scaled"
    with Engine.load(config(base, folders)) as roomy:
        room = max(len(roomy.adapters._pack(roomy.adapters._read(folders[name]))) for name in (first, second))
    with tight(base, {name: folders[name] for name in (first, second)}, room) as engine:
        for name in (first, second) * 2:
            run(engine, {name: (PROMPTS[0], name)})
        assert engine.adapters.num_loads == 4, "they pushed each other out"
        engine.add(GenerateRequest(request_id="x", prompt_ids=PROMPTS[0], params=SamplingParams(), adapter=first))
        with pytest.raises(QueueFull, match="running requests and their adapters hold"):
            engine.add(GenerateRequest(request_id="y", prompt_ids=PROMPTS[0], params=SamplingParams(), adapter=second))
        with pytest.raises(RequestError, match="serves 1 open continuations"):
            engine.unload_lora(first)
        engine.abort("x")
        engine.step()
        assert run(engine, {"y": (PROMPTS[0], second)})["y"]
        engine.unload_lora(first)
        with pytest.raises(RequestError, match=f"no adapter '{first}' is loaded"):
            engine.add(GenerateRequest(request_id="z", prompt_ids=PROMPTS[0], params=SamplingParams(), adapter=first))


def test_a_name_that_comes_back_with_other_numbers_finds_nothing_of_the_old_ones(
    base: Path, folders: dict[str, Path]
) -> None:
    with Engine.load(config(base, {})) as engine:
        engine.load_lora("mine", folders["mixed"])
        expected = run(engine, {"a": (PROMPTS[3], "mine")})["a"]
        engine.unload_lora("mine")
        engine.load_lora("mine", folders["small"])
        params = SamplingParams(max_tokens=1, ignore_eos=True)
        asked = {"session_id": "s", "keep_s": 99.0, "adapter": "mine"}
        engine.add(GenerateRequest(request_id="b", prompt_ids=PROMPTS[3], params=params, **asked))  # type: ignore[arg-type]
        while engine.has_work:
            engine.step()
        assert engine.core.counters.prefix_hit_tokens == 0 and engine.sessions.num_blocks > 0
        engine.unload_lora("mine")
        assert engine.sessions.report(0.0) == []
        engine.load_lora("mine", folders["mixed"])
        assert run(engine, {"c": (PROMPTS[3], "mine")})["c"] == expected


def test_continuations_and_embeddings_run_with_their_adapter(base: Path, folders: dict[str, Path]) -> None:
    with Engine.load(config(base, folders)) as engine:
        params = SamplingParams(n=3, temperature=1.0, seed=1, max_tokens=5, ignore_eos=True)
        engine.add(GenerateRequest(request_id="n", prompt_ids=PROMPTS[0], params=params, adapter="small"))
        vectors = {}
        for name in ("", "small"):
            engine.add(EmbedRequest(request_id=f"e{name}", prompt_ids=PROMPTS[1], adapter=name))
        while engine.has_work:
            for output in engine.step():
                if output.embedding is not None:
                    vectors[output.request_id] = list(output.embedding)
        assert vectors["e"] != vectors["esmall"]
        assert all(row["num_continuations"] == 0 for row in engine.adapters.report())


def test_a_budget_that_adapters_in_use_do_not_fit_is_refused(base: Path, folders: dict[str, Path]) -> None:
    with Engine.load(config(base, folders)) as engine:
        from ziggurat.memory.fit import smallest_budget

        least = smallest_budget(engine.fit.plan, engine.fit.request.overhead_bytes, 64)
        params = SamplingParams(max_tokens=4, ignore_eos=True)
        engine.add(GenerateRequest(request_id="x", prompt_ids=PROMPTS[0], params=params, adapter="mixed"))
        with pytest.raises(DoesNotFit, match="adapters that requests use now hold"):
            engine.set_memory(least)
        while engine.has_work:
            engine.step()
        assert engine.set_memory(least).after_bytes == least
        assert engine.adapters.num_blocks == 0


def broken(base: Path, folder: Path, **changes: Any) -> Path:
    return write_adapter(folder, base, config=changes)


def test_bad_adapters_are_refused_alone_and_by_name(base: Path, folders: dict[str, Path], tmp_path: Path) -> None:
    with Engine.load(config(base, folders)) as engine:

        def refused(folder: Path, words: str, kind: type[Exception] = ModelError) -> None:
            with pytest.raises(kind, match=words):
                engine.load_lora("bad", folder)
            assert "bad" not in engine.lora_names()

        refused(tmp_path, "has no adapter_config.json")
        refused(broken(base, tmp_path / "dora", use_dora=True), "sets use_dora to True", UnsupportedFeature)
        refused(broken(base, tmp_path / "bias", bias="all"), "sets bias to 'all'", UnsupportedFeature)
        refused(broken(base, tmp_path / "kind", peft_type="IA3"), "of kind 'IA3'", UnsupportedFeature)
        refused(broken(base, tmp_path / "rank", r=5), "has rank 4, adapter_config.json says 5")
        refused(broken(base, tmp_path / "alpha", lora_alpha=None), "must say lora_alpha")
        pickled = tmp_path / "pickle"
        write_adapter(pickled, base)
        (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
        refused(pickled, "is a pickle", UnsupportedFeature)
        for name, change, words in (
            ("shape", lambda tensor: tensor[:, :-8], "made for another base model"),
            ("nan", lambda tensor: tensor * torch.nan, "NaN or infinity"),
        ):
            folder = write_adapter(tmp_path / name, base, targets=("q_proj",))
            path = folder / "adapter_model.safetensors"
            tensors = load_file(path)
            key = next(key for key in tensors if "lora_A" in key)
            save_file({**tensors, key: change(tensors[key]).contiguous()}, path)
            if name == "shape":
                refused(folder, words)
                continue
            engine.load_lora("nan", folder)
            with pytest.raises(ModelError, match=words):
                engine.add(GenerateRequest(request_id="x", prompt_ids=[5], params=SamplingParams(), adapter="nan"))
        with pytest.raises(ConfigError, match="there already"):
            engine.load_lora("small", folders["small"])
        with pytest.raises(ConfigError, match="base model's name"):
            engine.load_lora(engine.model.name, folders["small"])
        assert run(engine, {"fine": (PROMPTS[0], "small")})["fine"]
        assert sum(stats.used for stats in engine.store.stats()) == engine.adapters.num_blocks


def test_the_python_interface_takes_a_name(base: Path, folders: dict[str, Path]) -> None:
    settings: dict[str, Any] = {"max_model_len": 64, "lora_modules": (f"small={folders['small']}",), "kernels": FASTEST}
    with LLM(str(base), memory="32MiB", **settings) as llm:
        params = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
        plain, tuned = (
            llm.generate([PROMPTS[0]], params, adapter=name)[0].outputs[0].token_ids for name in ("", "small")
        )
        assert plain != tuned
        with pytest.raises(RequestError, match="no adapter 'smal' is loaded, did you mean 'small'"):
            llm.generate([PROMPTS[0]], params, adapter="smal")


def test_modules_are_named_or_refused_at_start(base: Path, folders: dict[str, Path]) -> None:
    for wrong in ("x", "=x", "x="):
        with pytest.raises(ConfigError, match="must look like name=path"):
            EngineConfig(lora_modules=(wrong,))
    with pytest.raises(ConfigError, match="a name of its own"):
        EngineConfig(lora_modules=("a=x", "a=y"))
    with pytest.raises(ModelError, match="has no adapter_config"):
        Engine.load(replace(CONFIG, model=str(base), lora_modules=("a=/nowhere",)))
    assert set(json.loads((folders["small"] / "adapter_config.json").read_text())["target_modules"]) == set(TARGETS)
