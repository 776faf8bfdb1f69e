# SPDX-License-Identifier: Apache-2.0
"""From the model argument to a folder or GGUF file: a path, ``embedded``, or ``org/name`` in the Hugging Face cache. Torch-free."""

from __future__ import annotations

import json
import re
from pathlib import Path

from ziggurat.engine.config import EMBEDDED_MODEL
from ziggurat.errors import ModelError, ModelNotFound
from ziggurat.programs.gguf.header import is_gguf

EMBEDDED_FOLDER = Path(__file__).parents[1] / "assets" / "embedded"
_REPOSITORY = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")
# Weights other than safetensors are never read, so they are never fetched.
_PATTERNS = ["*.json", "*.jinja", "*.safetensors"]


def resolve_model(model: str, *, may_download: bool = False) -> Path:
    """The GGUF file or folder of a model argument.

    Raises:
        ModelNotFound, ModelError: see `resolve_folder`.
    """
    path = Path(model).expanduser()
    return path if is_gguf(path) else resolve_folder(model, may_download=may_download)


def resolve_folder(model: str, *, may_download: bool = False) -> Path:
    """The folder of a model argument.

    A folder wins over a repository of the same name. A repository is taken from the cache (``HF_HOME``); what the cache lacks is
    downloaded only with ``may_download``, and never in offline mode (``HF_HUB_OFFLINE=1``).

    Raises:
        ModelNotFound: no such folder, or not in the cache and not to be had.
        ModelError: the argument names a file.
    """
    if model == EMBEDDED_MODEL:
        if not (EMBEDDED_FOLDER / "config.json").is_file():
            raise ModelNotFound(
                f"the embedded model is not part of this installation ({EMBEDDED_FOLDER} is missing); name a model folder"
            )
        return EMBEDDED_FOLDER
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        raise ModelError(
            f"{path} is a file and not GGUF; name the folder that holds config.json, *.safetensors and tokenizer.json, or a "
            f"GGUF file"
        )
    if not _REPOSITORY.match(model):
        raise ModelNotFound(
            f"there is no folder or file {model!r}; a model is a folder, a GGUF file, 'org/name' in the Hugging Face cache, or 'embedded'"
        )
    return _resolve_repository(model, may_download)


def _resolve_repository(name: str, may_download: bool) -> Path:
    from huggingface_hub import constants, snapshot_download, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    found = try_to_load_from_cache(name, "config.json")
    folder = Path(found).parent if isinstance(found, str) else None
    if folder is not None and _has_weights(folder):
        return folder
    where = f"the Hugging Face cache at {constants.HF_HUB_CACHE}"
    state = "does not have" if folder is None else "has no weights of"
    if not may_download or constants.HF_HUB_OFFLINE:
        why = "offline mode is on" if constants.HF_HUB_OFFLINE else "nothing is downloaded here"
        raise ModelNotFound(
            f"{where} {state} {name!r} and {why}: fetch it with `hf download {name}`, or name a model folder"
        )
    try:
        return Path(snapshot_download(name, allow_patterns=_PATTERNS))
    except HfHubHTTPError as error:
        raise ModelNotFound(f"{name!r} cannot be downloaded: {_first_line(error)}") from error
    except LocalEntryNotFoundError as error:
        raise ModelNotFound(f"{where} {state} {name!r} and the hub cannot be reached: {_first_line(error)}") from error
    except OSError as error:
        raise ModelNotFound(f"{name!r} cannot be kept in {where}: {error.strerror or _first_line(error)}") from error


def _has_weights(folder: Path) -> bool:
    """Whether the snapshot has weights, all shards of its index if it has one (an interrupted download leaves some out)."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return any(folder.glob("*.safetensors"))
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError):
        return True  # damaged: reading it says what is wrong
    return all((folder / name).is_file() for name in names)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
