# SPDX-License-Identifier: Apache-2.0
"""Models read from GGUF: the same bits as from the folder they came from, tokenizer and template included."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.checkpoints import CONFIGS, VOCAB_SIZE, write_checkpoint
from tests.unit.engine.rig import LIMITS, Rig
from ziggurat.engine.assets import load_assets
from ziggurat.engine.config import EngineConfig
from ziggurat.engine.gguf.export import export_gguf
from ziggurat.engine.gguf.options import EXPORT_FORMATS
from ziggurat.engine.llm import LLM
from ziggurat.engine.sizing import ModelSource, open_model
from ziggurat.engine.tokenizer import Tokenizer
from ziggurat.errors import ModelError, UnsupportedFeature
from ziggurat.programs.formats import BF16, FP32, Q4_0, Q8_0, FormatSpec
from ziggurat.programs.lower import Formats, lower
from ziggurat.scheduling.sampling import SamplingParams

TOKENS = torch.randint(2, VOCAB_SIZE, (60,), generator=torch.Generator().manual_seed(3)).tolist()
NAMES = ("llama", "llama_tied", "llama_llama3", "llama_linear", "llama_yarn", "qwen2", "qwen3")


def open_path(path: Path) -> ModelSource:
    return open_model(EngineConfig(model=str(path)))


def to_gguf(folder: Path, kind: str) -> Path:
    return export_gguf(open_path(folder), folder / f"{kind}.gguf", EXPORT_FORMATS[kind]).path


def logits(path: Path) -> torch.Tensor:
    rig = Rig(path)
    return rig.logits(rig.item("only", TOKENS, 0))[0]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("kind", "dtype"), [("f32", torch.float32), ("bf16", torch.bfloat16)])
def test_logits_are_the_folders(name: str, kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, name, dtype=dtype)
    found, expected = logits(to_gguf(folder, kind)), logits(folder)
    if name == "llama_llama3":
        # The file has divisors of the frequencies in fp32, the folder the rule that makes them.
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    else:
        assert torch.equal(found, expected)


def test_quantized_weights_are_bf16_if_asked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = to_gguf(write_checkpoint(tmp_path, "llama"), "q8_0")
    source = open_model(EngineConfig(model=str(path), quantization="none"))
    assert (source.quantized_as, source.formats.weight, source.formats.kv) == ("q8_0", BF16, BF16)
    assert open_model(EngineConfig(model=str(path), dtype="float32")).formats.weight == FP32
    with caplog.at_level(logging.WARNING), LLM(str(path), memory="64MiB", quantization="none") as llm:
        params = SamplingParams(max_tokens=4, temperature=0.0)
        (from_file,) = llm.generate(["the thin"], params)
    assert "Q8_0 weights are decoded to bf16" in caplog.text
    assert len(from_file.outputs[0].token_ids) == 4


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("spec", [Q8_0, Q4_0], ids=lambda spec: spec.name)
def test_quantized_files_are_served_as_they_are(
    name: str, spec: FormatSpec, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The file's blocks go into the panels untouched, q and k of the Llama architecture in Hugging Face's order: the same bytes and
    bits as the folder, quantized while it is loaded."""
    folder = write_checkpoint(tmp_path, name)
    path = to_gguf(folder, spec.name)
    formats = open_path(path).formats
    assert (formats.weight, formats.kv) == (spec, BF16)
    with caplog.at_level(logging.WARNING):
        direct, quantized = Rig(path), Rig(folder, weight=spec)
    assert not caplog.records
    for packed, view in direct.memory.weights.items():
        assert torch.equal(view, quantized.memory.weights[packed]), packed
    found, expected = (rig.logits(rig.item("only", TOKENS, 0))[0] for rig in (direct, quantized))
    assert torch.equal(found, expected)


def test_files_of_mixed_types_are_decoded(tmp_path: Path) -> None:
    """Rows that are no whole blocks fall back to F16: then not all matrices have one format, and auto keeps bf16."""
    path = to_gguf(write_checkpoint(tmp_path, {**CONFIGS["llama"], "intermediate_size": 100}), "q8_0")
    assert open_path(path).formats.weight == BF16
    with pytest.raises(UnsupportedFeature, match=r"down_proj.weight' have 100 values, which is no multiple of 32"):
        lower(open_path(path).program, Formats(weight=Q8_0, kv=FP32), LIMITS)


def test_a_broken_scale_in_the_file_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = to_gguf(write_checkpoint(tmp_path, "llama"), "q8_0")
    entry = open_path(path).tensors["model.layers.1.mlp.up_proj.weight"]
    blob = bytearray(path.read_bytes())
    blob[entry.offset + 34 : entry.offset + 36] = b"\xff\xff"
    path.write_bytes(blob)
    with caplog.at_level(logging.WARNING):
        Rig(path)
    assert "1 tensors hold NaN or infinity, first 'model.layers.1.mlp.up_proj.weight'" in caplog.text


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Tokenizer]:
    """The embedded model's tokenizer, from tokenizer.json and from a file that we wrote."""
    source = open_path(Path("embedded"))
    path = export_gguf(source, tmp_path_factory.mktemp("g") / "e.gguf").path
    ours, theirs = load_assets(source).tokenizer, load_assets(open_path(path)).tokenizer
    assert ours is not None and theirs is not None
    return ours, theirs


@given(text=st.text(max_size=60) | st.sampled_from(["<|user|> hi<|turn|>", "it's  1234\n\n", "<|end|>"]))
def test_text_becomes_the_same_tokens_and_comes_back(pair: tuple[Tokenizer, Tokenizer], text: str) -> None:
    ours, theirs = pair
    for add_special_tokens in (True, False):
        ids = ours.encode(text, add_special_tokens=add_special_tokens)
        assert theirs.encode(text, add_special_tokens=add_special_tokens) == ids
    assert theirs.decode(ids) == ours.decode(ids)
    assert theirs.special_ids == ours.special_ids and theirs.vocab_size == ours.vocab_size


def test_template_ends_and_settings_are_the_folders(tmp_path: Path) -> None:
    ours = load_assets(open_path(Path("embedded")))
    path = export_gguf(open_path(Path("embedded")), tmp_path / "e.gguf").path
    theirs = load_assets(open_path(path))
    messages = [{"role": "user", "content": "Hello!"}]
    assert ours.template is not None and theirs.template is not None
    assert theirs.template.render(messages) == ours.template.render(messages)
    assert theirs.defaults == ours.defaults


def test_a_file_without_tokenizer_takes_token_ids(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, "qwen3", with_tokenizer=False)
    path = to_gguf(folder, "f32")
    params = SamplingParams(max_tokens=5, temperature=0.0, ignore_eos=True)
    outputs = []
    for model in (folder, path):
        with LLM(str(model), memory="64MiB") as llm:
            outputs.append(llm.generate([TOKENS], params)[0].outputs[0].token_ids)
    assert outputs[0] == outputs[1]


def test_a_truncated_file_is_one_error(tmp_path: Path) -> None:
    path = to_gguf(write_checkpoint(tmp_path, "llama"), "f16")
    blob = path.read_bytes()
    path.write_bytes(blob[:-4096])
    with pytest.raises(ModelError, match=f"truncated: tensor .* the file has {len(blob) - 4096}"):
        open_path(path)


def test_a_tensor_that_is_missing_or_too_many_is_named(tmp_path: Path) -> None:
    path = to_gguf(write_checkpoint(tmp_path, "llama"), "f16")
    for old, words in ((b"blk.1.ffn_up.weight", "lacks tensor 'model.layers.1.mlp.up_proj.weight'"),):
        changed = path.with_name("changed.gguf")
        changed.write_bytes(path.read_bytes().replace(old, b"blk.1.ffn_xx.weight"))
        with pytest.raises(ModelError, match=words):
            open_path(changed)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (b"gpt2", b"bert", "tokenizer 'bert' is not read from GGUF"),
        (b"gpt-2", b"bloom", "pre-tokenizer 'bloom'"),
    ],
)
def test_other_tokenizers_are_refused_by_name(old: bytes, new: bytes, words: str, tmp_path: Path) -> None:
    path = to_gguf(write_checkpoint(tmp_path, "llama"), "f16")
    path.write_bytes(path.read_bytes().replace(old, new, 1))
    with pytest.raises(UnsupportedFeature, match=words):
        load_assets(open_path(path))


def test_a_gguf_file_is_not_exported_again(tmp_path: Path) -> None:
    path = to_gguf(write_checkpoint(tmp_path, "llama"), "f16")
    shutil.copy(path, tmp_path / "copy.gguf")
    with pytest.raises(UnsupportedFeature, match="is GGUF already"):
        export_gguf(open_path(tmp_path / "copy.gguf"), tmp_path / "again.gguf")
