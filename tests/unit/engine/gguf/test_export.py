# SPDX-License-Identifier: Apache-2.0
"""Exported files, judged by llama.cpp (the same logits, the same token ids) and by the `gguf` package (the same numbers)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from tests.checkpoints import CHAT_TEMPLATE, CONFIGS, VOCAB_SIZE, make_tensors, write_checkpoint
from ziggurat.engine.config import EngineConfig
from ziggurat.engine.gguf.export import Exported, export_gguf
from ziggurat.engine.gguf.options import EXPORT_FORMATS
from ziggurat.engine.sizing import open_model
from ziggurat.errors import ConfigError, ModelError, UnsupportedFeature

TOKENS = torch.randint(2, VOCAB_SIZE, (70,), generator=torch.Generator().manual_seed(3)).tolist()
# fp32 both; the sums are in another order, and llama.cpp's exponential is an approximation.
MAX_RELATIVE_ERROR = 1e-3
CASES: dict[str, Mapping[str, Any]] = {
    **{name: CONFIGS[name] for name in ("llama", "llama_tied", "qwen2", "qwen3", "llama_linear", "llama_llama3")},
    "llama_yarn": CONFIGS["llama_yarn"],
    "llama_bias": {**CONFIGS["llama"], "attention_bias": True},
    "mistral": {**CONFIGS["mistral"], "sliding_window": None},
}


def export(folder: Path, kind: str = "f32") -> Exported:
    path = folder / f"{kind}.gguf"
    return export_gguf(open_model(EngineConfig(model=str(folder))), path, EXPORT_FORMATS[kind])


def fields(path: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


@pytest.mark.parametrize("name", sorted(CASES))
def test_llama_cpp_computes_the_same_logits(name: str, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (make env-bench)")
    from tests.unit.engine.gguf.llama_cpp import distance, llama_logits, our_logits

    folder = write_checkpoint(tmp_path, CASES[name], with_tokenizer=False)
    found = llama_logits(export(folder).path, TOKENS, has_flash_attention=False)
    assert distance(our_logits(folder, TOKENS), found).relative <= MAX_RELATIVE_ERROR


def test_llama_cpp_cuts_text_into_the_same_tokens(tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (make env-bench)")
    from ziggurat.engine.resolve import EMBEDDED_FOLDER
    from ziggurat.engine.tokenizer import Tokenizer

    path = export_gguf(open_model(EngineConfig()), tmp_path / "embedded.gguf").path
    model, ours = llama_cpp.Llama(str(path), vocab_only=True, verbose=False), Tokenizer.load(EMBEDDED_FOLDER)
    for text in (
        "Hello there!",
        "  two  spaces, 12345 and\n\n\ttabs",
        "naïve – 日本語 🙂",
        "<|user|> it's<|turn|>",
        "a",
    ):
        assert model.tokenize(text.encode(), add_bos=True, special=True) == ours.encode(text)


def test_every_number_is_the_sources(tmp_path: Path) -> None:
    """bf16 is kept; f16, Q8_0 and Q4_0 are rounded as the gguf package rounds; q and k of the Llama architecture lie in pairs."""
    config = {**CONFIGS["llama"], "hidden_size": 96, "intermediate_size": 160}
    folder = write_checkpoint(tmp_path, config, dtype=torch.bfloat16)
    source = {name: tensor.float().numpy() for name, tensor in make_tensors(config, dtype=torch.bfloat16).items()}
    query = source["model.layers.1.self_attn.q_proj.weight"]
    # As convert_hf_to_gguf.py writes it: heads, halves, rows of a half.
    paired = query.reshape(4, 2, 12, 96).swapaxes(1, 2).reshape(96, 96)
    for kind, quant in (("bf16", "BF16"), ("f16", "F16"), ("q8_0", "Q8_0"), ("q4_0", "Q4_0")):
        tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(export(folder, kind).path).tensors}
        wanted = gguf.GGMLQuantizationType[quant]
        for name, values in (("blk.1.attn_q.weight", paired), ("blk.2.ffn_down.weight", source[_DOWN])):
            assert tensors[name].tensor_type == wanted
            expected = gguf.quants.quantize(np.ascontiguousarray(values), wanted)
            assert np.array_equal(np.asarray(tensors[name].data).view(np.uint8), expected.view(np.uint8))
        norm = tensors["blk.0.attn_norm.weight"]
        assert norm.tensor_type == gguf.GGMLQuantizationType.F32
        assert np.array_equal(norm.data, source["model.layers.0.input_layernorm.weight"])


_DOWN = "model.layers.2.mlp.down_proj.weight"


def test_vocabulary_template_and_settings_are_in_the_file(tmp_path: Path) -> None:
    found = fields(export(write_checkpoint(tmp_path, "llama")).path)
    assert found["tokenizer.ggml.model"] == "gpt2" and found["tokenizer.ggml.pre"] == "gpt-2"
    assert found["tokenizer.ggml.tokens"][:2] == ["<s>", "</s>"]
    # 262 tokens in tokenizer.json, 300 rows in the model.
    assert found["tokenizer.ggml.tokens"][-1] == "[PAD299]" and len(found["tokenizer.ggml.tokens"]) == VOCAB_SIZE
    assert found["tokenizer.ggml.token_type"] == [3, 3, *[1] * 260, *[5] * 38]
    assert found["tokenizer.ggml.merges"] == ["t h", "th e", "i n", "Ġ a"]
    assert found["tokenizer.chat_template"] == CHAT_TEMPLATE
    assert (found["tokenizer.ggml.bos_token_id"], found["tokenizer.ggml.eos_token_id"]) == (0, 1)
    assert found["tokenizer.ggml.add_bos_token"] is False
    assert (found["llama.context_length"], found["llama.attention.head_count_kv"]) == (256, 2)


def test_a_folder_without_tokenizer_has_none_in_the_file(tmp_path: Path) -> None:
    found = fields(export(write_checkpoint(tmp_path, "llama", with_tokenizer=False)).path)
    assert found["tokenizer.ggml.model"] == "none" and found["llama.vocab_size"] == VOCAB_SIZE
    assert "tokenizer.ggml.tokens" not in found and found["tokenizer.ggml.eos_token_id"] == 1


def test_rows_that_are_no_whole_blocks_fall_back_and_are_counted(tmp_path: Path) -> None:
    config = {**CONFIGS["llama"], "intermediate_size": 100}
    assert export(write_checkpoint(tmp_path, config), "q8_0").num_fallback == 3


def test_the_context_of_a_windowed_mistral_is_its_window(tmp_path: Path) -> None:
    result = export(write_checkpoint(tmp_path, "mistral"))
    assert fields(result.path)["llama.context_length"] == 24
    assert "24 tokens" in result.notes[0]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (CONFIGS["gemma2"], "Gemma2ForCausalLM"),
        (CONFIGS["mixtral"], "MixtralForCausalLM"),
        (CONFIGS["qwen2_window"], "sliding window"),
        ({**CONFIGS["qwen3"], "attention_bias": True}, "biases"),
        ({**CONFIGS["llama"], "hidden_act": "gelu_pytorch_tanh"}, "gelu_pytorch_tanh"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(
    config: Mapping[str, Any], words: str, tmp_path: Path
) -> None:
    folder = write_checkpoint(tmp_path, config)
    with pytest.raises(UnsupportedFeature, match=words):
        export(folder)
    assert not list(folder.glob("*.gguf*"))


def test_a_value_beyond_f16_is_refused_and_no_file_is_left(tmp_path: Path) -> None:
    tensors = make_tensors(CONFIGS["llama"])
    tensors[_DOWN][0, 0] = 70000.0
    write_checkpoint(tmp_path, "llama")
    from safetensors.torch import save_file

    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"7e\+04, f16 ends at 65504"):
        export(tmp_path, "f16")
    assert not list(tmp_path.glob("*.gguf*"))


def test_a_file_that_cannot_be_written_is_one_error(tmp_path: Path) -> None:
    source = open_model(EngineConfig(model=str(write_checkpoint(tmp_path, "llama"))))
    with pytest.raises(ConfigError, match="cannot write"):
        export_gguf(source, tmp_path / "missing" / "x.gguf")
