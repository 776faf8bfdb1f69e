# SPDX-License-Identifier: Apache-2.0
"""``embed`` with a model of the test's own: where texts come from, what comes out, and which text was at fault."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ziggurat.cli import embed
from ziggurat.cli.main import main
from ziggurat.engine.config import EngineConfig
from ziggurat.engine.embedding import EmbeddingOutput, EmbeddingRequestOutput
from ziggurat.errors import RequestError


class Lengths:
    """The embedding of a text is its length, twice; ten characters are too long."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.settings: list[tuple[str, bool]] = []
        self.configs: list[EngineConfig] = []
        self.num_closed = 0

    def embed(self, texts: Sequence[str], *, pooling: str, normalize: bool) -> list[EmbeddingRequestOutput]:
        if any(len(text) >= 10 for text in texts):
            raise RequestError("too long")
        self.batches.append(list(texts))
        self.settings.append((pooling, normalize))
        return [
            EmbeddingRequestOutput(
                request_id=text,
                prompt=text,
                prompt_token_ids=[0] * len(text),
                outputs=EmbeddingOutput(embedding=[float(len(text))] * 2),
            )
            for text in texts
        ]

    def __enter__(self) -> Lengths:
        return self

    def __exit__(self, *_: object) -> None:
        self.num_closed += 1


@pytest.fixture
def llm(monkeypatch: pytest.MonkeyPatch) -> Lengths:
    llm = Lengths()

    def open_llm(config: EngineConfig) -> Lengths:
        llm.configs.append(config)
        return llm

    monkeypatch.setattr(embed, "open_llm", open_llm)
    return llm


def results(text: str) -> list[tuple[int, str, list[float]]]:
    return [(row["index"], row["text"], row["embedding"]) for row in map(json.loads, text.splitlines())]


def test_texts_of_the_command_line(llm: Lengths, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["embed", "org/name", "--text", "a", "--text", "", "--text", "abc", "--memory", "1GiB"]
    assert main([*argv, "--pooling", "last", "--no-normalize"]) == 0
    assert results(capsys.readouterr().out) == [(0, "a", [1.0, 1.0]), (1, "", [0.0, 0.0]), (2, "abc", [3.0, 3.0])]
    assert (llm.configs[0].model, llm.configs[0].memory) == ("org/name", "1GiB")
    assert llm.settings == [("last", False)]
    assert llm.num_closed == 1


def test_lines_of_standard_input(
    llm: Lengths, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("a \r\n\n \nno newline".replace("no newline", "é")))
    assert main(["embed"]) == 0
    assert [text for _, text, _ in results(capsys.readouterr().out)] == ["a ", "é"]


def test_a_long_file_flows_in_batches(llm: Lengths, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "texts", tmp_path / "vectors.jsonl"
    path.write_text("".join(f"{number}\n" for number in range(150)), encoding="utf-8")
    assert main(["embed", "--file", str(path), "--output", str(out)]) == 0
    assert [len(batch) for batch in llm.batches] == [64, 64, 22]
    rows = results(out.read_text(encoding="utf-8"))
    assert [(index, text) for index, text, _ in rows] == [(number, str(number)) for number in range(150)]
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", f"wrote {out}\n")


def test_the_text_at_fault_is_named_and_what_came_before_is_done(
    llm: Lengths, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "texts"
    path.write_text("one\n\nmuch too long\ntwo\n", encoding="utf-8")
    assert main(["embed", "--file", str(path)]) == 1
    captured = capsys.readouterr()
    assert [text for _, text, _ in results(captured.out)] == ["one"]
    assert "line 3: too long" in captured.err
    assert llm.num_closed == 1


def test_for_people(llm: Lengths, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["embed", "--text", "abc", "--format", "text"]) == 0
    assert capsys.readouterr().out == "0  3 tokens  +3.0000 +3.0000 .. (2 numbers)  abc\n"


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        (["--text", "a", "--file", "b"], 2, "not from both"),
        (["--file", "/no/such/file"], 1, "cannot read /no/such/file: No such file"),
        (["--text", "a", "--output", "/no/such/folder/x"], 1, "cannot write /no/such/folder/x"),
        (["--pooling", "median"], 2, "'median' is none of mean, last"),
    ],
)
def test_mistakes(argv: list[str], code: int, says: str, llm: Lengths, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["embed", *argv]) == code
    assert says in capsys.readouterr().err
    assert not llm.batches


def test_every_setting_reaches_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr("ziggurat.engine.llm.LLM", lambda **settings: seen.append(settings))
    embed.open_llm(EngineConfig(model="x", threads=1))
    assert EngineConfig(**seen[0]) == EngineConfig(model="x", threads=1)
