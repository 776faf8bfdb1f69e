# SPDX-License-Identifier: Apache-2.0
"""Where a model argument leads: a folder, the embedded model, a made-up Hugging Face cache, or one clear error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub import constants

from ziggurat.engine import resolve
from ziggurat.engine.resolve import resolve_folder
from ziggurat.errors import ModelError, ModelNotFound

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache; downloads are off, whatever the machine's environment says."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def snapshot(cache: Path, *names: str) -> Path:
    """``org/name`` in the cache with the named files."""
    repository = cache / "models--org--name"
    folder = repository / "snapshots" / ("a" * 40)
    folder.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40, encoding="utf-8")
    index = {"weight_map": {"a": SHARDS[0], "b": SHARDS[1]}}
    for name in names:
        (folder / name).write_text(json.dumps(index), encoding="utf-8")
    return folder


def test_a_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    assert resolve_folder(str(tmp_path)) == tmp_path


def test_a_file_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"")
    with pytest.raises(ModelError, match="is a file and not GGUF; name the folder"):
        resolve_folder(str(path))


def test_what_is_neither_says_what_a_model_is() -> None:
    with pytest.raises(
        ModelNotFound, match=r"no folder or file './nowhere'; a model is a folder, a GGUF file, 'org/name'"
    ):
        resolve_folder("./nowhere")


def test_the_embedded_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(resolve, "EMBEDDED_FOLDER", tmp_path)
    with pytest.raises(ModelNotFound, match="not part of this installation"):
        resolve_folder("embedded")
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    assert resolve_folder("embedded") == tmp_path


def test_a_cached_repository(cache: Path) -> None:
    folder = snapshot(cache, "config.json", "model.safetensors")
    assert resolve_folder("org/name") == folder
    assert resolve_folder("org/name", may_download=True) == folder


def test_a_cached_repository_with_all_its_shards(cache: Path) -> None:
    folder = snapshot(cache, "config.json", "model.safetensors.index.json", *SHARDS)
    assert resolve_folder("org/name") == folder


@pytest.mark.parametrize("names", [("config.json",), ("config.json", "model.safetensors.index.json", SHARDS[0])])
def test_an_interrupted_download_is_not_taken(cache: Path, names: tuple[str, ...]) -> None:
    snapshot(cache, *names)
    with pytest.raises(
        ModelNotFound, match=r"has no weights of 'org/name' and offline mode is on: fetch it with `hf download"
    ):
        resolve_folder("org/name", may_download=True)


def test_an_unknown_repository(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelNotFound, match=f"{cache} does not have 'org/other' and offline mode is on"):
        resolve_folder("org/other", may_download=True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(ModelNotFound, match="nothing is downloaded here"):
        resolve_folder("org/other")


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (PermissionError(13, "Permission denied"), "cannot be kept in the Hugging Face cache at .*: Permission denied"),
        (OSError("first\nsecond"), "first$"),
    ],
)
def test_a_download_that_fails(cache: Path, monkeypatch: pytest.MonkeyPatch, error: OSError, says: str) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(ModelNotFound, match=says):
        resolve_folder("org/other", may_download=True)
