# SPDX-License-Identifier: Apache-2.0
"""Text to token ids and back: ``tokenizer.json`` through the `tokenizers` library, and text that grows token by token.

Two ways of growing text, chosen by the tokenizer's decoder. Byte-level decoders map every token to bytes, so an incremental UTF-8
decoder is exact and O(1) per token. All others (Metaspace, byte fallback, WordPiece ..) decode a short window of recent tokens twice
and emit the difference.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import tokenizers
from tokenizers import decoders

from ziggurat.errors import ModelError, ModelNotFound

_BYTE_TOKEN = re.compile(r"^<0x[0-9A-Fa-f]{2}>$")


@cache
def _byte_of_character() -> dict[str, int]:
    """GPT-2's printable stand-ins for the 256 bytes (openai/gpt-2 ``bytes_to_unicode``)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    table = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in set(printable))
    return table | {chr(256 + index): byte for index, byte in enumerate(others)}


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a checkpoint; empty if there is no such file.

    Raises:
        ModelError: damaged, or not an object.
    """
    if not path.is_file():
        return {}
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(raw, dict):
        raise ModelError(f"{path} must hold a JSON object, not {type(raw).__name__}")
    return raw


class Detokenizer(Protocol):
    """Text of one growing sequence. The concatenation of all answers is ``Tokenizer.decode`` of all tokens."""

    def add(self, token_id: int) -> str:
        """Text that became certain with this token; empty while a character is incomplete."""
        ...

    def flush(self) -> str:
        """The rest, once no token will follow; an incomplete character becomes U+FFFD."""
        ...


class Tokenizer:
    """The tokenizer of one checkpoint. Thread-safe: it has no state that changes.

    Attributes:
        vocab_size: token ids are below this (added tokens included).
        bos_token, eos_token: their text, or None.
        bos_id, eos_id: their ids, or None.
        special_ids: tokens that `decode` leaves out.
        config: the parsed tokenizer_config.json (empty if there is none).
    """

    def __init__(self, backend: tokenizers.Tokenizer, config: dict[str, Any] | None = None) -> None:
        self._backend = backend
        self._backend.no_truncation()
        self._backend.no_padding()
        self.config = config or {}
        added = backend.get_added_tokens_decoder()
        self.special_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        self.vocab_size = max(backend.get_vocab_size(with_added_tokens=True), max(added, default=-1) + 1)
        self.bos_token = self.token_text_of("bos_token")
        self.eos_token = self.token_text_of("eos_token")
        self.bos_id = self.token_id(self.bos_token)
        self.eos_id = self.token_id(self.eos_token)
        self._is_byte_level = isinstance(backend.decoder, decoders.ByteLevel)

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Reads tokenizer.json and tokenizer_config.json of a model folder.

        Raises:
            ModelNotFound: there is no tokenizer.json.
            ModelError: damaged.
        """
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise ModelNotFound(
                f"{folder} has no tokenizer.json; models that only have tokenizer.model or vocab files must be converted "
                f"(AutoTokenizer.from_pretrained(..).save_pretrained(..))"
            )
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise ModelError(f"{path} is damaged: {error}") from error
        return cls(backend, read_json_object(folder / "tokenizer_config.json"))

    def token_id(self, token: str | None) -> int | None:
        """The id of a token by its text; None if there is none."""
        found = None if token is None else self._backend.token_to_id(token)
        return None if found is None else int(found)

    def token_text_of(self, key: str) -> str | None:
        """The text of a special token by its key in tokenizer_config.json (``pad_token``); None if there is none."""
        value = self.config.get(key)
        if isinstance(value, dict):
            value = value.get("content")
        return value if isinstance(value, str) and value else None

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text. With ``add_special_tokens`` what tokenizer.json adds, corrected by add_bos_token and add_eos_token."""
        ids: list[int] = self._backend.encode(text, add_special_tokens=add_special_tokens).ids
        if not add_special_tokens:
            return ids
        plain: list[int] | None = None
        for key, token_id, place in (("add_bos_token", self.bos_id, 0), ("add_eos_token", self.eos_id, -1)):
            wanted = self.config.get(key)
            if wanted is None or token_id is None:
                continue
            plain = self._backend.encode(text, add_special_tokens=False).ids if plain is None else plain
            was_added = bool(ids) and ids[place] == token_id and _is_around(plain, ids, is_before=place == 0)
            if wanted and not (ids and ids[place] == token_id):
                ids = [token_id, *ids] if place == 0 else [*ids, token_id]
            elif not wanted and was_added:
                ids = ids[1:] if place == 0 else ids[:-1]
        return ids

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of token ids; ids outside the vocabulary (padding rows of the model) give nothing."""
        return str(self._backend.decode(list(token_ids), skip_special_tokens=skip_special_tokens))

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes a token stands for by itself, special tokens included (OpenAI's ``logprobs.content[].bytes``)."""
        token = self._backend.id_to_token(token_id)
        if token is None:
            return b""
        if token_id in self.special_ids:
            return str(token).encode()
        if self._is_byte_level:
            return _byte_level_bytes(token)
        if _BYTE_TOKEN.match(token):
            return bytes([int(token[3:5], 16)])
        return self.decode([token_id], skip_special_tokens=False).encode()

    def to_json(self) -> str:
        """The text of a ``tokenizer.json`` that makes the same tokens, without padding and truncation."""
        return str(self._backend.to_str())

    def token_text(self, token_id: int) -> str:
        """`token_bytes` as text; bytes that are no character by themselves become U+FFFD."""
        return self.token_bytes(token_id).decode("utf-8", errors="replace")

    def stream(self, *, skip_special_tokens: bool = True) -> Detokenizer:
        """A detokenizer for one new sequence."""
        skipped = self.special_ids if skip_special_tokens else frozenset()
        kind = _ByteLevelDetokenizer if self._is_byte_level else _WindowDetokenizer
        return kind(self._backend, skipped)


def _is_around(plain: list[int], ids: list[int], *, is_before: bool) -> bool:
    """Whether ``ids`` has more than ``plain`` before it (or behind it). A text may itself begin or end with a special token."""
    surplus = len(ids) - len(plain)
    starts = [start for start in range(surplus + 1) if ids[start : start + len(plain)] == plain]
    return bool(starts) and (starts[-1] > 0 if is_before else starts[0] < surplus)


def _byte_level_bytes(token: str) -> bytes:
    """What tokenizers' ByteLevel decoder does with one token: all characters map to bytes, or the token is taken as it is."""
    table = _byte_of_character()
    try:
        return bytes([table[character] for character in token])
    except KeyError:
        return token.encode()


class _ByteLevelDetokenizer:
    def __init__(self, backend: tokenizers.Tokenizer, skipped: Iterable[int]) -> None:
        self._backend = backend
        self._skipped = skipped
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def add(self, token_id: int) -> str:
        token = None if token_id in self._skipped else self._backend.id_to_token(token_id)
        return "" if token is None else self._decoder.decode(_byte_level_bytes(token))

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


class _WindowDetokenizer:
    """Decodes ``ids[prefix:]`` and ``ids[prefix:read]`` and emits the difference.

    ::

        ids:  ... prefix ........ read ........ end
                  [context, emitted)[new tokens)

    Context keeps the decoder from treating new tokens as the beginning of a text (where it strips a space). A run of byte tokens
    ``<0xE4>`` is held until it ends: the decoder judges a run as a whole.
    """

    def __init__(self, backend: tokenizers.Tokenizer, skipped: Iterable[int]) -> None:
        self._backend = backend
        self._skipped = skipped
        self._ids: list[int] = []
        self._read = 0

    def add(self, token_id: int) -> str:
        token = None if token_id in self._skipped else self._backend.id_to_token(token_id)
        if token is None:
            return ""
        self._ids.append(token_id)
        if _BYTE_TOKEN.match(token):
            return ""
        return self._take()

    def flush(self) -> str:
        return self._take() if self._read < len(self._ids) else ""

    def _take(self) -> str:
        before = self._decode(self._ids[: self._read])
        delta = self._decode(self._ids)[len(before) :]
        if delta:
            # What was new becomes the context; it has text, so it can never be mistaken for the beginning.
            del self._ids[: self._read]
        self._read = len(self._ids)
        return delta

    def _decode(self, token_ids: list[int]) -> str:
        return str(self._backend.decode(token_ids, skip_special_tokens=False))
