# SPDX-License-Identifier: Apache-2.0
"""From the model argument to a folder: the embedded model, a folder, or a repository in the Hugging Face cache. No torch."""

from __future__ import annotations

import importlib.resources
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ziggurat.engine.config import EMBEDDED_MODEL
from ziggurat.errors import ModelError, ModelNotFound

_REPOSITORY = re.compile(r"^[\w][\w.-]*/[\w][\w.-]*$")
# What is read of a repository; pickles, other formats and code are never fetched.
_PATTERNS = ("*.safetensors", "*.json", "*.jinja")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """Where a model comes from.

    Attributes:
        name: the model argument, as requests call it unless ``served_model_name`` says otherwise.
        folder: holds config.json, *.safetensors and tokenizer.json.
    """

    name: str
    folder: Path
    kind: Literal["embedded", "folder", "hub"]


def resolve(model: str) -> ModelSource:
    """The folder of a model argument: ``embedded``, a folder, or ``org/name``.

    A repository is taken from the Hugging Face cache (``HF_HOME``); one that is not there is downloaded unless
    ``HF_HUB_OFFLINE`` is set.

    Raises:
        ModelNotFound: says what was looked for, and where.
    """
    if model == EMBEDDED_MODEL:
        return ModelSource(name=model, folder=_embedded_folder(), kind="embedded")
    path = Path(model).expanduser()
    if path.is_dir():
        return ModelSource(name=model, folder=path, kind="folder")
    if path.exists():
        raise ModelNotFound(
            f"{model} is a file; give the folder that holds config.json, *.safetensors and tokenizer.json"
        )
    if not _REPOSITORY.match(model) or model.startswith("."):
        raise ModelNotFound(
            f"no folder {path.absolute()}; a model is '{EMBEDDED_MODEL}', a folder, or org/name in the Hugging Face cache"
        )
    return ModelSource(name=model, folder=_from_hub(model), kind="hub")


def _embedded_folder() -> Path:
    folder = Path(str(importlib.resources.files("ziggurat"))) / "assets" / "embedded"
    if not (folder / "config.json").is_file():
        raise ModelNotFound(
            f"this installation has no embedded model (looked for {folder / 'config.json'}); name a model folder, or make one "
            f"with `ziggurat train`"
        )
    return folder


def _from_hub(repository: str) -> Path:
    import huggingface_hub
    from huggingface_hub import constants

    place = f"the Hugging Face cache at {constants.HF_HUB_CACHE}"
    cached = _cached_snapshot(repository)
    if cached is not None:
        return cached
    if constants.HF_HUB_OFFLINE:
        raise ModelNotFound(
            f"{repository} is neither a folder below {Path.cwd()} nor in {place}, and HF_HUB_OFFLINE forbids downloading; "
            f"unset it, or fetch the model where there is a network"
        )
    try:
        return Path(huggingface_hub.snapshot_download(repository, allow_patterns=list(_PATTERNS)))
    except (huggingface_hub.errors.HfHubHTTPError, ValueError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelNotFound(
            f"{repository} is neither a folder below {Path.cwd()} nor in {place}, and downloading it failed: {reason}"
        ) from error


def _cached_snapshot(repository: str) -> Path | None:
    """The cached snapshot if it is usable, None if there is none.

    Raises:
        ModelError: it is there without weights, which an interrupted download leaves behind, and we are offline.
    """
    import huggingface_hub
    from huggingface_hub import constants

    try:
        folder = Path(huggingface_hub.snapshot_download(repository, local_files_only=True))
    except (huggingface_hub.errors.LocalEntryNotFoundError, huggingface_hub.errors.CacheNotFound, OSError):
        return None
    if (folder / "config.json").is_file() and any(folder.glob("*.safetensors")):
        return folder
    if constants.HF_HUB_OFFLINE:
        present = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
        raise ModelError(f"the cached copy of {repository} is incomplete: {folder} holds {present}")
    return None
