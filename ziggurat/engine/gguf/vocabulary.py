# SPDX-License-Identifier: Apache-2.0
"""The vocabulary of a model folder as metadata of a GGUF file, and back. Byte-level BPE (GGUF's ``gpt2``) only.

Source of the keys and token types: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models

from ziggurat.engine.chat_template import ChatTemplate, special_tokens
from ziggurat.engine.generation import GenerationDefaults
from ziggurat.engine.gguf.pretokenizers import has_ignored_merges, pretokenizer, pretokenizer_name
from ziggurat.engine.tokenizer import Tokenizer, read_json_object
from ziggurat.errors import ModelError, UnsupportedFeature
from ziggurat.programs.gguf.config import shortest
from ziggurat.programs.gguf.header import GgufHeader

_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5
_END_KEYS = ("eos", "eot", "eom")
_PREFIX = "tokenizer.ggml"


def vocabulary_metadata(folder: Path, raw: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of vocabulary, special tokens and chat template; ``tokenizer.ggml.model`` is ``none`` for a folder without tokenizer.json.

    Args:
        raw: the parsed config.json.

    Raises:
        UnsupportedFeature: a tokenizer that is no byte-level BPE, or whose pre-tokenizer GGUF has no name for.
        ModelError: damaged, or larger than the model's vocabulary.
    """
    if not (folder / "tokenizer.json").is_file():
        return {f"{_PREFIX}.model": "none", **_special(folder, raw, None)}
    tokenizer = Tokenizer.load(folder)
    source = read_json_object(folder / "tokenizer.json")
    pre = _checked_pre(folder, source)
    tokens, types = _tokens(folder, source, int(raw["vocab_size"]))
    merges = [each if isinstance(each, str) else " ".join(each) for each in source["model"]["merges"]]
    values: dict[str, Any] = {
        f"{_PREFIX}.model": "gpt2",
        f"{_PREFIX}.pre": pre,
        f"{_PREFIX}.tokens": tokens,
        f"{_PREFIX}.token_type": types,
        f"{_PREFIX}.merges": merges,
        **_special(folder, raw, tokenizer),
    }
    template = ChatTemplate.load(folder)
    return values | ({} if template is None else {"tokenizer.chat_template": template.source})


def tokenizer_from_gguf(header: GgufHeader) -> Tokenizer | None:
    """The tokenizer of a file; None if the file has none (``tokenizer.ggml.model`` is ``none``).

    Raises:
        UnsupportedFeature: not byte-level BPE, or a pre-tokenizer that is not known.
        ModelError: damaged or contradictory.
    """
    pre = check_tokenizer(header)
    if pre is None:
        return None
    tokens = header.array(f"{_PREFIX}.tokens")
    types = header.array(f"{_PREFIX}.token_type") or [_NORMAL] * len(tokens)
    if len(types) != len(tokens):
        raise ModelError(f"{header.path} contradicts itself: {len(tokens)} tokens and {len(types)} token types")
    used = {str(t): i for i, (t, kind) in enumerate(zip(tokens, types, strict=True)) if kind != _UNUSED}
    backend = tokenizers.Tokenizer(_bpe(header, used, has_ignored_merges(pre)))
    backend.pre_tokenizer = pretokenizer(pre)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([_added(t, True) for t, kind in zip(tokens, types, strict=True) if kind == _CONTROL])
    backend.add_tokens([_added(t, False) for t, kind in zip(tokens, types, strict=True) if kind == _USER_DEFINED])
    return Tokenizer(backend, _tokenizer_config(header, [str(token) for token in tokens], pre))


def check_tokenizer(header: GgufHeader) -> str | None:
    """The name of the pre-tokenizer; None for a file without tokenizer.

    Raises:
        UnsupportedFeature: not byte-level BPE, or a pre-tokenizer that is not known.
    """
    kind = header.metadata.get(f"{_PREFIX}.model", "none")
    if kind == "none":
        return None
    if kind != "gpt2":
        raise UnsupportedFeature(
            f"{header.path}: tokenizer {kind!r} is not read from GGUF, only byte-level BPE ('gpt2'); use the safetensors folder",
            feature=f"gguf:tokenizer:{kind}",
        )
    pre = str(header.metadata.get(f"{_PREFIX}.pre", "gpt-2"))
    pretokenizer(pre)
    return pre


def template_from_gguf(header: GgufHeader, tokenizer: Tokenizer | None) -> ChatTemplate | None:
    """The chat template of a file; None if it has none.

    Raises:
        ModelError: it is not valid Jinja.
    """
    source = header.metadata.get("tokenizer.chat_template")
    if not isinstance(source, str):
        return None
    tokens = {} if tokenizer is None else special_tokens(tokenizer.config)
    return ChatTemplate(source, tokens, origin=f"{header.path}: tokenizer.chat_template")


def generation_fields(header: GgufHeader, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """By the names of generation_config.json: sampling settings, and end tokens known by their text, as in llama.cpp."""
    fields = {name: header.metadata[key] for name, key in _SAMPLING.items() if key in header.metadata}
    plain = {name: shortest(value) if isinstance(value, float) else value for name, value in fields.items()}
    ids = () if tokenizer is None else (tokenizer.token_id(text) for text in _END_TEXTS)
    special = frozenset() if tokenizer is None else tokenizer.special_ids
    return plain | {"eos_token_id": [each for each in ids if each in special]}


def _added(token: object, is_special: bool) -> AddedToken:
    return AddedToken(str(token), special=is_special, normalized=False)


def _bpe(header: GgufHeader, vocab: dict[str, int], ignore_merges: bool) -> models.BPE:
    pairs = (str(each).partition(" ") for each in header.array(f"{_PREFIX}.merges"))
    merges = [(first, second) for first, _, second in pairs]
    try:
        return models.BPE(vocab=vocab, merges=merges, ignore_merges=ignore_merges)
    except Exception as error:  # the library raises bare Exception
        raise ModelError(f"{header.path}: vocabulary and merges contradict each other ({error})") from error


def _tokenizer_config(header: GgufHeader, tokens: list[str], pre: str) -> dict[str, Any]:
    """What tokenizer_config.json would say."""
    config: dict[str, Any] = {
        # llama.cpp's defaults where the file says nothing.
        "add_bos_token": bool(header.metadata.get(f"{_PREFIX}.add_bos_token", has_ignored_merges(pre))),
        "add_eos_token": bool(header.metadata.get(f"{_PREFIX}.add_eos_token", False)),
    }
    names = {"bos": "bos_token", "eos": "eos_token", "padding": "pad_token", "unknown": "unk_token"}
    for key, name in names.items():
        token_id = header.metadata.get(f"{_PREFIX}.{key}_token_id")
        if token_id is None:
            continue
        if isinstance(token_id, bool) or not isinstance(token_id, int) or not 0 <= token_id < len(tokens):
            raise ModelError(f"{header.path}: {_PREFIX}.{key}_token_id is {token_id!r}, there are {len(tokens)} tokens")
        config[name] = tokens[token_id]
    return config


def _checked_pre(folder: Path, source: Mapping[str, Any]) -> str:
    model, normalizer = source.get("model") or {}, source.get("normalizer")
    if model.get("type") != "BPE" or (source.get("decoder") or {}).get("type") != "ByteLevel":
        raise UnsupportedFeature(
            f"{folder}: only byte-level BPE tokenizers are exported to GGUF, this one is {model.get('type')} with decoder "
            f"{(source.get('decoder') or {}).get('type')}",
            feature="gguf:tokenizer",
        )
    # llama.cpp normalizes nothing; its own converter leaves NFC out too, which changes texts that were not composed.
    if normalizer is not None and normalizer.get("type") != "NFC":
        raise UnsupportedFeature(
            f"{folder}: GGUF has no normalizer {normalizer.get('type')!r}", feature="gguf:normalizer"
        )
    pre = pretokenizer_name(source.get("pre_tokenizer"))
    if pre is None or has_ignored_merges(pre) != bool(model.get("ignore_merges", False)):
        raise UnsupportedFeature(
            f"{folder}: GGUF has no name for the way this tokenizer.json cuts text (pre_tokenizer, ignore_merges), that is known here",
            feature="gguf:pre_tokenizer",
        )
    return pre


def _tokens(folder: Path, source: Mapping[str, Any], vocab_size: int) -> tuple[list[str], list[int]]:
    """Token texts and types by id; rows of the model without a token are unused ones."""
    tokens = [f"[PAD{index}]" for index in range(vocab_size)]
    types = [_UNUSED] * vocab_size
    added = [(each["content"], each["id"], bool(each.get("special"))) for each in source.get("added_tokens", ())]
    entries = [(text, token_id, _NORMAL) for text, token_id in source["model"]["vocab"].items()]
    entries += [(text, token_id, _CONTROL if special else _USER_DEFINED) for text, token_id, special in added]
    for text, token_id, kind in entries:
        if not 0 <= token_id < vocab_size:
            raise ModelError(
                f"{folder}: token {text!r} has id {token_id}, config.json says a vocabulary of {vocab_size}: they contradict each other"
            )
        tokens[token_id], types[token_id] = text, kind
    return tokens, types


def _special(folder: Path, raw: Mapping[str, Any], tokenizer: Tokenizer | None) -> dict[str, Any]:
    defaults = GenerationDefaults.load(folder, raw, tokenizer)
    first = None if tokenizer is None else tokenizer.eos_id
    ends = [each for each in (first, *defaults.eos_ids) if each is not None]
    names = zip(_END_KEYS, dict.fromkeys(ends), strict=False)
    values: dict[str, Any] = {f"{_PREFIX}.{name}_token_id": token_id for name, token_id in names}
    values |= {_SAMPLING[name]: value for name, value in defaults.sampling.items()}
    return values if tokenizer is None else values | _begin(raw, tokenizer)


def _begin(raw: Mapping[str, Any], tokenizer: Tokenizer) -> dict[str, Any]:
    """Keys of the begin and padding tokens, and what is added to a text."""
    bos = raw.get("bos_token_id") if tokenizer.bos_id is None else tokenizer.bos_id
    pad = tokenizer.token_id(tokenizer.token_text_of("pad_token"))
    values: dict[str, Any] = {
        f"{_PREFIX}.{name}_token_id": each for name, each in (("bos", bos), ("padding", pad)) if isinstance(each, int)
    }
    ids = tokenizer.encode("a")
    values[f"{_PREFIX}.add_bos_token"] = bool(ids) and ids[0] == bos
    values[f"{_PREFIX}.add_eos_token"] = bool(ids) and ids[-1] == tokenizer.eos_id
    return values


# Control tokens that end a turn whatever the file says (llama-vocab.cpp, special_eog_ids).
_END_TEXTS = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<|endoftext|>", "<|eom_id|>", "<|end_of_text|>", "<end_of_turn>")
_SAMPLING = {
    "temperature": "general.sampling.temp",
    "top_k": "general.sampling.top_k",
    "top_p": "general.sampling.top_p",
    "min_p": "general.sampling.min_p",
    "repetition_penalty": "general.sampling.penalty_repeat",
}
