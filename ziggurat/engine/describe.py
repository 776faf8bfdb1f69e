# SPDX-License-Identifier: Apache-2.0
"""What a model is, from its headers and small files: for `ziggurat show`. Torch-free.

A model that is refused is described as far as it goes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from ziggurat.engine.config import EngineConfig
from ziggurat.engine.describe_text import describe_text
from ziggurat.engine.gguf.vocabulary import check_tokenizer
from ziggurat.engine.resolve import resolve_model
from ziggurat.engine.sizing import ModelSource, open_model
from ziggurat.engine.tokenizer import read_json_object
from ziggurat.errors import UserError
from ziggurat.programs.checkpoint import TensorEntry, read_folder
from ziggurat.programs.config import positive_int
from ziggurat.programs.formats import format_by_ggml, ggml_type_name
from ziggurat.programs.gguf.header import GgufHeader, is_gguf, read_gguf_header
from ziggurat.programs.gguf.names import hf_name

T = TypeVar("T")
# First match wins.
_PARTS = (
    ("embed_tokens", "embedding"),
    ("lm_head", "output head"),
    ("norm", "norms"),
    (".experts.", "experts"),
    ("self_attn", "attention"),
    ("mlp", "feed-forward"),
)


def describe_model(model: str) -> dict[str, Any]:
    """Everything that can be said of a model without its weights; units in the names, None where nothing is known.

    ``problems`` is empty for a model that can be served; otherwise its first entry is the reason for the refusal.

    Raises:
        ModelNotFound: there is nothing of that name.
        ModelError: the path is neither folder nor GGUF.
    """
    path = resolve_model(model)
    problems: list[str] = []
    header = _attempt(problems, lambda: read_gguf_header(path)) if is_gguf(path) else None
    source = None if problems else _attempt(problems, lambda: open_model(EngineConfig(model=model)))
    tensors = (
        None if problems and is_gguf(path) and header is None else _attempt(problems, lambda: _tensors(path, header))
    )
    if header is not None:
        _attempt(problems, lambda: check_tokenizer(header))
    text = None if is_gguf(path) and header is None else _attempt(problems, lambda: describe_text(path, header))
    return {
        "model": model,
        "path": str(path),
        "kind": "gguf" if is_gguf(path) else "folder",
        "is_supported": not problems,
        "problems": list(dict.fromkeys(problems)),
        "architecture": _architecture(path, header, source),
        **_sizes(source),
        **_storage(tensors),
        **(text or describe_text(None, None)),
    }


def _attempt(problems: list[str], read: Callable[[], T]) -> T | None:
    """The value, or None with the error among the problems."""
    try:
        return read()
    except UserError as error:
        problems.append(str(error))
        return None


def _architecture(path: Path, header: GgufHeader | None, source: ModelSource | None) -> str | None:
    if source is not None:
        return source.program.architecture
    if header is not None:
        found = header.metadata.get("general.architecture")
        return found if isinstance(found, str) else None
    # Whatever is wrong with the file is among the problems already.
    names = _attempt([], lambda: read_json_object(path / "config.json").get("architectures")) if path.is_dir() else None
    return str(names[0]) if isinstance(names, list) and names else None


Stored = tuple[str, str, int, int | None]
"""(name, format, values, bytes); bytes are None for a type whose size is not known here."""


def _tensors(path: Path, header: GgufHeader | None) -> list[Stored]:
    if header is None:
        return [_stored(name, entry) for name, entry in read_folder(path).items()]
    found: list[Stored] = []
    for name, tensor in header.tensors.items():
        spec = format_by_ggml(tensor.type_id)
        size = None if spec is None else spec.num_bytes(tensor.shape)
        found.append((hf_name(name) or name, ggml_type_name(tensor.type_id).lower(), _product(tensor.shape), size))
    return found


def _stored(name: str, entry: TensorEntry) -> Stored:
    return name, entry.format.name, _product(entry.shape), entry.num_bytes


def _product(shape: Iterable[int]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def _storage(tensors: list[Stored] | None) -> dict[str, Any]:
    """Values and bytes in the files, by format and by part of the model."""
    if tensors is None:
        return dict.fromkeys(("num_tensors", "stored_bytes", "formats", "parts"))
    return {
        "num_tensors": len(tensors),
        "stored_bytes": _total(tensors),
        "formats": _grouped("format", ((each[1], each) for each in tensors)),
        "parts": _grouped("part", ((_part(each[0]), each) for each in tensors)),
    }


def _grouped(key: str, pairs: Iterable[tuple[str, Stored]]) -> list[dict[str, Any]]:
    groups: dict[str, list[Stored]] = {}
    for name, stored in pairs:
        groups.setdefault(name, []).append(stored)
    rows = [
        {
            key: name,
            "num_tensors": len(members),
            "num_parameters": sum(m[2] for m in members),
            "num_bytes": _total(members),
        }
        for name, members in groups.items()
    ]
    return sorted(rows, key=lambda row: -int(str(row["num_parameters"])))


def _total(tensors: Iterable[Stored]) -> int | None:
    sizes = [each[3] for each in tensors]
    return None if None in sizes else sum(size for size in sizes if size is not None)


def _part(name: str) -> str:
    return next((part for piece, part in _PARTS if piece in name), "other")


_SIZE_KEYS = (
    *("num_parameters", "weight_format", "stored_format", "num_layers", "hidden_size", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "vocab_size", "context_tokens", "rope_theta", "rope_scaling"),
    *("is_head_tied", "kv_format", "kv_bytes_per_token", "kv_groups"),
)


def _sizes(source: ModelSource | None) -> dict[str, Any]:
    if source is None:
        return dict.fromkeys(_SIZE_KEYS)
    program, raw, kv = source.program, source.raw, source.formats.kv
    groups = program.kv_groups()
    values = (
        program.num_parameters(),
        source.formats.weight.name,
        source.quantized_as or source.formats.weight.name,
        len(program.layers),
        program.hidden_size,
        positive_int(raw, "num_attention_heads"),
        groups[0].num_kv_heads,
        groups[0].head_dim,
        program.vocab_size,
        program.max_position,
        program.rope.theta,
        program.rope.kind,
        any(spec.tied_to is not None for spec in program.weights.values()),
        kv.name,
        kv.num_bytes((sum(group.values_per_token() for group in groups),)),
        [{"num_layers": len(group.layers), "window_tokens": group.window} for group in groups],
    )
    return dict(zip(_SIZE_KEYS, values, strict=True))
