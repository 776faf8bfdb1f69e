# SPDX-License-Identifier: Apache-2.0
"""How a byte-level BPE cuts text before it merges: GGUF has a name for it, tokenizer.json a regular expression.

Source of names and expressions: llama.cpp's ``llama-vocab.cpp``; the expressions are those of the models' own tokenizer.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenizers import Regex, pre_tokenizers

from ziggurat.errors import UnsupportedFeature

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SPLITS = {"llama-bpe": rf"{_CONTRACTIONS}\p{{N}}{{1,3}}{_TAIL}", "qwen2": rf"{_CONTRACTIONS}\p{{N}}{_TAIL}"}
_GPT2, _DIGITS = "gpt-2", "smollm"
_ALIASES = {
    **dict.fromkeys(("llama3", "llama-v3", "smaug-bpe"), "llama-bpe"),
    **dict.fromkeys(("deepseek-r1-qwen",), "qwen2"),
}
KNOWN = (_GPT2, *_SPLITS, _DIGITS, *_ALIASES)
"""Names that are read."""


def has_ignored_merges(name: str) -> bool:
    """Whether a piece of text that is a token is taken whole: llama.cpp ties it to this pre-tokenizer."""
    return _ALIASES.get(name, name) == "llama-bpe"


def pretokenizer(name: str) -> pre_tokenizers.PreTokenizer:
    """The pre-tokenizer with that name.

    Raises:
        UnsupportedFeature: it is not known.
    """
    plain = _ALIASES.get(name, name)
    if plain == _GPT2:
        return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if plain == _DIGITS:
        first: pre_tokenizers.PreTokenizer = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([first, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    if plain not in _SPLITS:
        raise UnsupportedFeature(
            f"pre-tokenizer {name!r} of a GGUF file is not read. Known: {', '.join(KNOWN)}", feature=f"gguf:pre:{name}"
        )
    first = pre_tokenizers.Split(Regex(_SPLITS[plain]), "isolated")
    return pre_tokenizers.Sequence([first, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def pretokenizer_name(raw: Mapping[str, Any] | None) -> str | None:
    """GGUF's name for the ``pre_tokenizer`` of a tokenizer.json; None if it has none that is known here."""
    steps = [] if raw is None else raw.get("pretokenizers", []) if raw.get("type") == "Sequence" else [raw]
    last = steps[-1] if steps else {}
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space"):
        return None
    before, has_regex = steps[:-1], last.get("use_regex", True)
    if not before:
        return _GPT2 if has_regex else None
    if len(before) > 1:
        return None
    (step,) = before
    if step.get("type") == "Digits":
        return _DIGITS if step.get("individual_digits") and has_regex else None
    if has_regex or step.get("type") != "Split" or step.get("behavior") != "Isolated" or step.get("invert"):
        return None
    return next((name for name, regex in _SPLITS.items() if step.get("pattern") == {"Regex": regex}), None)
