# SPDX-License-Identifier: Apache-2.0
"""Quality through the engine: every token once, the same figures as a plain computation, and the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.checkpoints import write_checkpoint
from ziggurat import LLM, SamplingParams
from ziggurat.catalog.quality.measure import QualityWork, Variant, row, run_variant, score_text
from ziggurat.cli.bench import quality
from ziggurat.errors import ConfigError

TEXT = "the thing and the other thing of the first one " * 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model"))


def quiet(num_done: int, num_steps: int, what: str) -> None:
    pass


def test_windows_score_every_token_once(folder: Path) -> None:
    with LLM(str(folder), memory="256MiB") as llm:
        tokenizer = llm.engine.tokenizer
        assert tokenizer is not None
        ids = tokenizer.encode(TEXT, add_special_tokens=False)
        whole = score_text(llm, tokenizer, QualityWork(text=TEXT, window_tokens=len(ids) + 1), quiet)
        (output,) = llm.generate([tokenizer.encode(TEXT)], SamplingParams(prompt_logprobs=1, max_tokens=0))
        assert output.prompt_logprobs is not None
        assert tokenizer.encode(TEXT) == ids, (
            "this tokenizer begins a text with nothing, so its first token has no score"
        )
        pairs = zip(ids, output.prompt_logprobs, strict=True)
        expected = [entry[token] for token, entry in pairs if entry is not None]
        assert whole.logprobs.tolist() == pytest.approx(expected)
        for window in (5, 8, 13, 31):
            pieces = score_text(llm, tokenizer, QualityWork(text=TEXT, window_tokens=window), quiet)
            assert len(pieces.logprobs) == len(ids) - 1
            # Tokens of the first window see the same context as in the whole text.
            assert pieces.logprobs[: window - 1].tolist() == pytest.approx(expected[: window - 1])


def test_a_narrow_format_differs_and_the_same_one_does_not(folder: Path) -> None:
    work = QualityWork(text=TEXT, window_tokens=32)
    found = {}
    for name in ("float32", "q8_0", "again"):
        variant = Variant(weights="float32" if name == "again" else name)
        with LLM(str(folder), memory="256MiB", **variant.settings) as llm:
            found[name] = run_variant(llm, work, quiet)
    same = row(Variant(weights="float32"), found["again"], found["float32"])
    narrow = row(Variant(weights="q8_0"), found["q8_0"], found["float32"])
    assert same["perplexity_ratio"] == 1 and same["top1_agreement"] == 1
    assert narrow["perplexity_ratio"] != 1 and narrow["weight_bytes"] < same["weight_bytes"]
    assert 0 < narrow["mean_kl_lower_bound"] < 0.1


def test_the_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    args = [str(folder), "--text", str(text), "--items", "0", "--variant", "bfloat16/fp32", "--format", "json"]
    assert quality.run(args) == 0
    result = json.loads(capsys.readouterr().out)
    assert [each["variant"] for each in result["rows"]] == ["float32/fp32", "bfloat16/fp32"]
    assert result["rows"][0]["perplexity_ratio"] == 1 and result["kind"] == "measured"
    assert "perplexity" in quality.as_text(result)


def test_refusals(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown task 'neddle'.*needle"):
        quality.run([str(folder), "--task", "neddle"])
    with pytest.raises(ConfigError, match="quantization must be one of"):
        quality.run([str(folder), "--variant", "q9"])
    with pytest.raises(ConfigError, match="tasks' words as single tokens"):
        quality.run([str(folder), "--items", "2"])
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    with pytest.raises(ConfigError, match="the text is empty"):
        quality.run([str(folder), "--items", "0", "--text", str(empty)])
