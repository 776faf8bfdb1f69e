# SPDX-License-Identifier: Apache-2.0
"""The reference decoder against transformers, and folders that hold transforms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from ziggurat.errors import TransformAlreadyApplied, UnsupportedFeature
from ziggurat.programs.config import decoder_config, load_config
from ziggurat.quantization.dense import ReferenceDecoder, load_dense
from ziggurat.quantization.ksort import fold_ksort

IDS = np.array([3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5])
SIZES: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}


@pytest.mark.parametrize("name", ["Llama", "Mistral", "Qwen2", "Qwen3"])
def test_logits_are_those_of_transformers_before_and_after_a_fold(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    extra = {"sliding_window": 4} if name == "Mistral" else {}
    config = getattr(transformers, name + "Config")(**SIZES, **extra)
    model = getattr(transformers, name + "ForCausalLM")(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(tmp_path / "model")
    with torch.no_grad():
        wanted = model(torch.from_numpy(IDS)[None]).logits[0].numpy()
    checkpoint = load_dense(tmp_path / "model")
    windows = (4,) * 2 if name == "Mistral" else checkpoint.config.windows
    object.__setattr__(checkpoint, "config", decoder_config(checkpoint.raw, windows))
    assert np.allclose(ReferenceDecoder(checkpoint).logits(IDS), wanted, rtol=1e-3, atol=1e-3)
    if name != "Mistral":
        fold_ksort(tmp_path / "model", tmp_path / "sorted")
        folded = load_dense(tmp_path / "sorted")
        assert folded.orders and np.allclose(ReferenceDecoder(folded).logits(IDS), wanted, rtol=1e-3, atol=1e-3)


def test_a_sorted_folder_is_not_sorted_again_and_not_misread(tmp_path: Path) -> None:
    from ziggurat.engine.resolve import EMBEDDED_FOLDER

    transform = fold_ksort(EMBEDDED_FOLDER, tmp_path / "sorted")
    assert load_dense(tmp_path / "sorted").applied == (transform.entry,)
    with pytest.raises(TransformAlreadyApplied, match=transform.entry):
        fold_ksort(tmp_path / "sorted", tmp_path / "again")
    with pytest.raises(UnsupportedFeature, match="channel_order"):
        decoder_config(load_config(tmp_path / "sorted"))
