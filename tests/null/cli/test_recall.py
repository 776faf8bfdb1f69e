# SPDX-License-Identifier: Apache-2.0
"""``ziggurat recall`` from the command line, by words only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ziggurat.cli.main import main
from ziggurat.cli.recall import KINDS


@pytest.fixture
def call(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    monkeypatch.setenv("ZIGGURAT_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("ZIGGURAT_ENCODER", "none")

    def call(*args: str, code: int = 0) -> Any:
        capsys.readouterr()
        assert main(["recall", *args, "--format", "json"]) == code
        out, err = capsys.readouterr()
        return json.loads(out) if code == 0 else err

    return call


def test_a_memory_from_its_beginning_to_its_end(call: Any) -> None:
    first = call("add", "Anna lives in Paris", "Ben has a boat")
    assert [each["is_new"] for each in first] == [True, True]
    assert call("add", "anna  lives in PARIS")[0] == {"id": first[0]["id"], "is_new": False}
    (hit,) = call("search", "who lives in Paris?")
    assert hit["memory"]["text"] == "Anna lives in Paris" and hit["words"] == ["lives", "paris"]
    (note,) = call("add", "Anna is French", "--source", first[0]["id"])
    assert call("update", first[0]["id"], "Anna lives in Rome", "--expected-version", "1")["version"] == 2
    assert "at version 2, not 1" in call("update", first[0]["id"], "x", "--expected-version", "1", code=1)
    shown = call("show", first[0]["id"])
    assert [each["text"] for each in shown["history"]] == ["Anna lives in Paris", "Anna lives in Rome"]
    assert shown["derived"] == [note["id"]] and call("show", note["id"])["is_stale"]
    assert call("restore", first[0]["id"], "1")["text"] == "Anna lives in Paris"
    assert call("delete", first[0]["id"])["num_stale"] == 1
    assert call("search", "Paris") == []
    assert call("delete", first[1]["id"], "--hard")["num_records"] == 1
    assert "no memory" in call("show", first[1]["id"], code=1)
    stats = call("stats")
    assert (stats["num_active"], stats["num_deleted"]) == (1, 1)


def test_export_is_what_import_reads(call: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call("add", "tea", "coffee", "--speaker", "Anna", "--tag", "drinks")
    before = {each["text"]: each for each in call("export")}
    assert main(["recall", "export", "--output", str(tmp_path / "all.jsonl")]) == 0
    assert call("import", str(tmp_path / "all.jsonl"), "--user", "other") == {
        "num_read": 2,
        "num_new": 2,
        "num_known": 0,
    }
    after = {each["text"]: each for each in call("export", "--user", "other")}
    assert {text: (each["speaker"], each["tags"], each["said_s"]) for text, each in after.items()} == {
        text: (each["speaker"], each["tags"], each["said_s"]) for text, each in before.items()
    }
    assert call("reindex", "--user", "other")["num_active"] == 2


def test_chats_and_notes(call: Any, tmp_path: Path) -> None:
    chat = tmp_path / "chat.json"
    turns = [{"role": "user", "content": "I like tea"}, {"role": "assistant", "content": [{"text": "Noted"}]}]
    chat.write_text(json.dumps([{"id": "c1", "messages": turns}]))
    assert call("import", str(chat), "--form", "openai")["num_new"] == 2
    (hit,) = call("search", "tea")
    assert (hit["memory"]["session"], hit["memory"]["speaker"], hit["memory"]["kind"]) == ("c1", "user", "message")
    notes = tmp_path / "notes.md"
    notes.write_text("# House\n\nThe key is under\nthe mat.\n\n## Garden\n\n- roses\n- a pond\n")
    assert call("import", str(notes), "--form", "markdown")["num_new"] == 3
    (hit,) = call("search", "where is the key")
    assert hit["memory"]["text"] == "The key is under the mat." and hit["memory"]["session"] == "notes / House"
    exported = tmp_path / "chatgpt.json"
    node = {"message": {"author": {"role": "user"}, "create_time": 5.0, "content": {"parts": ["my cat is called Mia"]}}}
    exported.write_text(json.dumps([{"title": "cats", "mapping": {"a": node, "b": {"message": None}}}]))
    assert call("import", str(exported), "--form", "openai")["num_new"] == 1
    assert call("search", "cat")[0]["memory"]["said_s"] == 5.0


@pytest.mark.parametrize(
    ("text", "form", "message"),
    [
        ('{"text": 5}', "jsonl", "line 1: an object with a text is needed"),
        ("nonsense", "openai", "is not JSON"),
        ("[[1]]", "openai", "conversation 0"),
        ("{}", "locomo", "LoCoMo"),
    ],
)
def test_files_that_are_something_else(call: Any, tmp_path: Path, text: str, form: str, message: str) -> None:
    path = tmp_path / "file"
    path.write_text(text)
    assert message in call("import", str(path), "--form", form, code=1)


def test_every_kind_has_a_file() -> None:
    for kind in KINDS.summaries:
        assert KINDS.load(kind).parser().prog == f"ziggurat recall {kind}"
