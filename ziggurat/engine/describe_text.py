# SPDX-License-Identifier: Apache-2.0
"""Tokenizer, special tokens and chat template of a model as plain data, without building a tokenizer. Torch-free."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ziggurat.engine.chat_template import ChatTemplate, special_tokens
from ziggurat.engine.tokenizer import read_json_object
from ziggurat.programs.gguf.header import GgufArray, GgufHeader

_CONTROL = 3
_KEYS = ("tokenizer", "special_tokens", "control_tokens", "chat_template")


def describe_text(path: Path | None, header: GgufHeader | None) -> dict[str, Any]:
    """``tokenizer`` (kind, pre-tokenizer, number of tokens; None without one), ``special_tokens`` by role, ``control_tokens``,
    ``chat_template``.

    Args:
        path: a folder or a GGUF file; None gives the keys without values.
        header: of the GGUF file.

    Raises:
        ModelError: a file is damaged.
    """
    if path is None:
        return dict.fromkeys(_KEYS)
    return _of_folder(path) if header is None else _of_gguf(header)


def _of_folder(folder: Path) -> dict[str, Any]:
    raw, config = read_json_object(folder / "tokenizer.json"), read_json_object(folder / "tokenizer_config.json")
    model, added = raw.get("model") or {}, raw.get("added_tokens") or []
    template = ChatTemplate.load(folder)
    names = {entry["content"] for entry in added} | set(model.get("vocab") or ())
    tokenizer = {
        "kind": model.get("type"),
        "pre_tokenizer": _kinds(raw.get("pre_tokenizer")),
        "num_tokens": len(names),
    }
    return {
        "tokenizer": tokenizer if raw else None,
        "special_tokens": special_tokens(config),
        "control_tokens": [entry["content"] for entry in added if entry.get("special")],
        "chat_template": None if template is None else template.source,
    }


def _kinds(step: dict[str, Any] | None) -> str | None:
    if not step:
        return None
    steps = step.get("pretokenizers") if step.get("type") == "Sequence" else [step]
    return ", ".join(str(each.get("type")) for each in steps or [])


def _of_gguf(header: GgufHeader) -> dict[str, Any]:
    metadata = header.metadata
    kind = metadata.get("tokenizer.ggml.model", "none")
    tokens, types = header.array("tokenizer.ggml.tokens"), header.array("tokenizer.ggml.token_type")
    listed = metadata.get("tokenizer.ggml.tokens")
    special = {}
    for role in ("bos", "eos", "eot", "eom", "unknown", "padding"):
        token_id = metadata.get(f"tokenizer.ggml.{role}_token_id")
        if isinstance(token_id, int) and 0 <= token_id < len(tokens):
            special[f"{role}_token"] = tokens[token_id]
    tokenizer = {
        "kind": kind,
        "pre_tokenizer": metadata.get("tokenizer.ggml.pre"),
        "num_tokens": listed.count if isinstance(listed, GgufArray) else 0,
    }
    return {
        "tokenizer": None if kind == "none" else tokenizer,
        "special_tokens": special,
        "control_tokens": [token for token, each in zip(tokens, types, strict=False) if each == _CONTROL],
        "chat_template": metadata.get("tokenizer.chat_template"),
    }
