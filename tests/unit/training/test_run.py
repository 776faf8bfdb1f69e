# SPDX-License-Identifier: Apache-2.0
"""A whole run on a tiny recipe: export loads back, evaluation counts right answers, user text is learnt from, errors speak."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from ziggurat.errors import ConfigError
from ziggurat.training.config import MixtureEntry, load_recipe, parse_recipe
from ziggurat.training.evaluate import evaluate_task, make_items, right_answers
from ziggurat.training.export import load_exported
from ziggurat.training.generated import BEGIN, TURN, build_sources
from ziggurat.training.interpreter import ProgramModel
from ziggurat.training.run import TrainingResult, run_training
from ziggurat.training.tokenizer import encode, prose_corpus, train_tokenizer
from ziggurat.workload.tasks.layout import SPECIAL_TOKENS, byte_token


@pytest.fixture(scope="module")
def tokenizer_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train_tokenizer(prose_corpus(300)).save(str(path))
    return path


@pytest.fixture(scope="module")
def result(tokenizer_path: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainingResult:
    folder = tmp_path_factory.mktemp("run")
    text = folder / "mine.txt"
    text.write_text("the red fox sees the blue bird and the bird sees the fox. " * 60, encoding="utf-8")
    recipe = load_recipe("tiny")
    first, second = recipe.stages
    stages = (
        dataclasses.replace(first, max_tokens=1024),
        dataclasses.replace(second, max_tokens=1024, mixture=(*second.mixture, MixtureEntry(source="text", share=0.5))),
    )
    config = dataclasses.replace(recipe, tokenizer=str(tokenizer_path), texts=(str(text),), stages=stages)
    return run_training(config, folder / "out")


def test_the_export_loads_back_and_is_whole(result: TrainingResult) -> None:
    assert result.is_finished
    assert result.model_folder is not None
    names = {path.name for path in result.model_folder.iterdir()}
    assert names == {
        *("config.json", "generation_config.json", "model.safetensors"),
        *("tokenizer.json", "tokenizer_config.json", "MODEL_CARD.md"),
    }
    model, tokenizer = load_exported(result.model_folder)
    saved = torch.load(result.checkpoint_path, weights_only=True)["weights"]
    for name, weight in model.named_weights().items():
        assert torch.equal(weight, saved[name].to(torch.bfloat16).float()), name
    config = json.loads((result.model_folder / "config.json").read_text())
    assert config["bos_token_id"] == BEGIN
    assert TURN in config["eos_token_id"]
    assert tokenizer.encode(" hello").ids[0] == BEGIN
    card = (result.model_folder / "MODEL_CARD.md").read_text()
    for words in (
        "Apache-2.0",
        f"{result.tokens:,}",
        "held-out perplexity, prose",
        "held-out perplexity, text",
        "Provenance",
    ):
        assert words in card, words


def test_the_run_leaves_log_and_loss_curve(result: TrainingResult) -> None:
    folder = result.checkpoint_path.parent
    events = [json.loads(line)["event"] for line in (folder / "log.jsonl").read_text().splitlines()]
    assert events[0] == "start"
    assert events[-1] == "stop"
    assert "step" in events
    assert (folder / "loss.csv").exists() or (folder / "loss.svg").exists()
    assert set(result.held_out or {}) == {"prose", "chat", "text"}


@pytest.mark.parametrize(
    ("recipe", "texts", "words"), [("tiny", ("a.txt",), "use the recipe 'text'"), ("text", (), "--text FILE")]
)
def test_texts_and_recipe_must_agree(recipe: str, texts: tuple[str, ...], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        run_training(dataclasses.replace(load_recipe(recipe), texts=texts), tmp_path)


def test_a_finished_folder_is_not_overwritten(result: TrainingResult) -> None:
    with pytest.raises(ConfigError, match="--resume"):
        run_training(load_recipe("tiny"), result.checkpoint_path.parent)


def test_the_chat_template_gives_the_tokens_of_training(result: TrainingResult) -> None:
    jinja2 = pytest.importorskip("jinja2", reason="jinja2 renders chat templates")
    assert result.model_folder is not None
    tokenizer = Tokenizer.from_file(str(result.model_folder / "tokenizer.json"))
    config = json.loads((result.model_folder / "tokenizer_config.json").read_text())
    template = jinja2.Environment(keep_trailing_newline=True).from_string(config["chat_template"])
    messages = [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "A model. "}]
    text = template.render(messages=messages, bos_token=config["bos_token"], add_generation_prompt=True)
    ids = encode(tokenizer, text)
    special = [SPECIAL_TOKENS[token] for token in ids if token < len(SPECIAL_TOKENS)]
    assert special == ["<|begin|>", "<|user|>", "<|turn|>", "<|assistant|>", "<|turn|>", "<|assistant|>"]
    assert encode(tokenizer, " A model.") == ids[ids.index(SPECIAL_TOKENS.index("<|assistant|>")) + 1 : -2]


def test_evaluation_counts_whole_answers(result: TrainingResult, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that reads the answers off a table: one with the last token spoilt is wrong as a whole."""
    assert result.model_folder is not None
    model, tokenizer = load_exported(result.model_folder)
    items = list(make_items(tokenizer, "key_value", 64, 3, seed=5))
    answers = [list(item.parts[0][1]) for item in items]

    def oracle(self: ProgramModel, ids: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        targets = ids.reshape(-1)[rows + 1].clone()
        targets[-1] += 1
        return torch.nn.functional.one_hot(targets, 1025).float()

    monkeypatch.setattr(ProgramModel, "forward", oracle)
    assert all(len(answer) == 2 for answer in answers)
    assert right_answers(model, items) == [True, True, False]
    assert evaluate_task(model, tokenizer, "key_value", 64, 4, seed=5).accuracy.num_correct < 4


def test_evaluation_items_are_those_of_their_seed(tokenizer_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(tokenizer_path))
    first, again, other = (list(make_items(tokenizer, "needle", 200, 2, seed)) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_fixed_ids_of_the_layout_are_those_of_the_tokenizer(tokenizer_path: Path) -> None:
    vocabulary = Tokenizer.from_file(str(tokenizer_path)).get_vocab()
    assert len(vocabulary) == 1024
    assert [vocabulary[token] for token in SPECIAL_TOKENS] == list(range(len(SPECIAL_TOKENS)))
    for character, token in ((":", ":"), ("\n", "Ċ"), (" ", "Ġ"), ("~", "~")):
        assert byte_token(character) == vocabulary[token]


@pytest.mark.parametrize("name", ["prose", "chat", "chat_task", "needle", "variable_tracking", "many_shot"])
@pytest.mark.parametrize("length", [200, 333])
def test_every_source_gives_the_length_and_something_to_learn(tokenizer_path: Path, name: str, length: int) -> None:
    source = build_sources(Tokenizer.from_file(str(tokenizer_path)))[name]
    for seed in range(5):
        ids, is_answer = source(np.random.default_rng(seed), length)
        assert ids.shape == is_answer.shape == (length,)
        assert is_answer.any()
        assert not is_answer[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"stagez": []}, "did you mean 'stages'"),
        ({"initial": "zero"}, "initial must be"),
        ({"stages": []}, "at least one"),
        ({"precision": "fp8"}, "precision must be"),
    ],
)
def test_a_wrong_recipe_is_refused_by_name(change: dict[str, object], words: str) -> None:
    raw = {"name": "x", "model": {"max_position_embeddings": 64}, "stages": [_stage()], **change}
    with pytest.raises(ConfigError, match=words):
        parse_recipe(raw)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"lengths_tokens": [65]}, "in 8..64"),
        ({"tokens_per_step": 0}, "above 0"),
        ({"mixture": []}, "at least one entry"),
        ({"learning_rte": 1.0}, "did you mean 'learning_rate'"),
    ],
)
def test_a_wrong_stage_is_refused_by_name(change: dict[str, object], words: str) -> None:
    raw = {"name": "x", "model": {"max_position_embeddings": 64}, "stages": [{**_stage(), **change}]}
    with pytest.raises(ConfigError, match=words):
        parse_recipe(raw)


def _stage() -> dict[str, object]:
    return {
        "name": "one",
        "lengths_tokens": [32],
        "tokens_per_step": 64,
        "max_tokens": 640,
        "learning_rate": 1e-3,
        "mixture": [{"source": "copy", "share": 1.0}],
    }


def test_unknown_recipe_and_short_text_are_refused(tokenizer_path: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'tiny'"):
        load_recipe("tinny")
    short = tmp_path / "short.txt"
    short.write_text("too short", encoding="utf-8")
    with pytest.raises(ConfigError, match="at least 200"):
        build_sources(Tokenizer.from_file(str(tokenizer_path)), [str(short)])
