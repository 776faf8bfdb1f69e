# SPDX-License-Identifier: Apache-2.0
"""Every pre-tokenizer that is read: a vocabulary trained with it cuts text as llama.cpp does with the name that we wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, trainers

from tests.checkpoints import CONFIGS, write_checkpoint
from ziggurat.engine.assets import load_assets
from ziggurat.engine.config import EngineConfig
from ziggurat.engine.gguf.export import export_gguf
from ziggurat.engine.gguf.pretokenizers import KNOWN, has_ignored_merges, pretokenizer, pretokenizer_name
from ziggurat.engine.sizing import open_model
from ziggurat.errors import UnsupportedFeature

ROOT = Path(__file__).parents[4]
VOCAB_SIZE = 700
NAMES = ("gpt-2", "llama-bpe", "qwen2", "smollm")
TEXTS = (
    "I'm sure they'LL say: 1234567 items, 3.14!",
    "  indented\n\n\n\tcode = {x: [1, 22, 333]};  # done  \n",
    "naïve Ünïcode – 日本語 🙂 ١٢٣",
    "<s>special</s> and\r\nplain ",
    *(ROOT / "README.md").read_text(encoding="utf-8").split("\n\n")[:12],
)


@pytest.fixture(scope="module", params=NAMES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose tokenizer was trained on the project's pages, cut in that way."""
    backend = tokenizers.Tokenizer(models.BPE(ignore_merges=has_ignored_merges(request.param)))
    backend.pre_tokenizer, backend.decoder = pretokenizer(request.param), decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    pages = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))]
    backend.train_from_iterator([*pages, " ".join(map(str, range(3000)))], trainer)
    folder = tmp_path_factory.mktemp("model")
    write_checkpoint(folder, {**CONFIGS["llama"], "vocab_size": VOCAB_SIZE})
    backend.save(str(folder / "tokenizer.json"))
    return folder


def test_llama_cpp_cuts_alike(folder: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (make env-bench)")
    source = open_model(EngineConfig(model=str(folder)))
    path = export_gguf(source, folder / "model.gguf").path
    model = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    ours = load_assets(source).tokenizer
    again = load_assets(open_model(EngineConfig(model=str(path)))).tokenizer
    assert ours is not None and again is not None
    for text in TEXTS:
        ids = ours.encode(text, add_special_tokens=False)
        assert model.tokenize(text.encode(), add_bos=False, special=True) == ids
        assert again.encode(text, add_special_tokens=False) == ids


@pytest.mark.parametrize("name", KNOWN)
def test_names_come_back(name: str) -> None:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pretokenizer(name)
    found = pretokenizer_name(json.loads(backend.to_str())["pre_tokenizer"])
    assert found == (name if name in NAMES else {"deepseek-r1-qwen": "qwen2"}.get(name, "llama-bpe"))


@pytest.mark.parametrize(
    "raw",
    [
        None,
        {"type": "Whitespace"},
        {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": "x"}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
            ],
        },
    ],
)
def test_others_have_no_name(raw: dict[str, object] | None, tmp_path: Path) -> None:
    assert pretokenizer_name(raw) is None
    folder = write_checkpoint(tmp_path)
    saved = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    (folder / "tokenizer.json").write_text(json.dumps({**saved, "pre_tokenizer": raw}), encoding="utf-8")
    with pytest.raises(UnsupportedFeature, match="no name for the way this tokenizer"):
        export_gguf(open_model(EngineConfig(model=str(folder))), folder / "x.gguf")
