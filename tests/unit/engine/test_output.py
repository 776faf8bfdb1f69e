# SPDX-License-Identifier: Apache-2.0
"""Text of growing sequences: incremental decoding is exact, and stop strings are found whatever the token borders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors

from tests.checkpoints import make_tokenizer
from ziggurat.engine.output import TextOutput, find_stop
from ziggurat.engine.tokenizer import Tokenizer
from ziggurat.errors import ModelError, ModelNotFound


def byte_level() -> Tokenizer:
    return Tokenizer(make_tokenizer(), {"bos_token": "<s>", "eos_token": {"content": "</s>"}})


def sentencepiece_like() -> Tokenizer:
    """Llama 2's way: ▁ for spaces, bytes as <0xNN>, the first space stripped."""
    pieces = ["▁", "▁the", "a", "é", "▁a", "b", ".", "▁你", "�"]
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    vocab |= {piece: len(vocab) + index for index, piece in enumerate(pieces)}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    backend.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    return Tokenizer(backend)


def word_pieces() -> Tokenizer:
    vocab = {token: index for index, token in enumerate(["[UNK]", "the", "##re", "cat", ".", ",", "do", "n't", "##s"])}
    backend = tokenizers.Tokenizer(models.WordPiece(vocab=vocab, unk_token="[UNK]"))
    backend.decoder = decoders.WordPiece(prefix="##")
    return Tokenizer(backend)


def no_decoder() -> Tokenizer:
    backend = tokenizers.Tokenizer(models.WordLevel(vocab={"a": 0, "b": 1, "c": 2}, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return Tokenizer(backend)


KINDS = {make.__name__: make() for make in (byte_level, sentencepiece_like, word_pieces, no_decoder)}
BIASED_IDS = st.lists(
    st.one_of(st.integers(0, 300), st.sampled_from([1, 2, 3 + 0xE4, 3 + 0xBD, 3 + 0xA0, 259, 260, 263]))
)


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("skip", [True, False])
@given(ids=BIASED_IDS)
@example(ids=[3 + 0xE4, 3 + 0xBD, 3 + 0xA0, 3 + 0xE5])
@example(ids=[259, 259, 261])
@example(ids=[1, 260, 1, 1, 260, 2])
def test_deltas_add_up_to_the_decoded_text(kind: str, skip: bool, ids: list[int]) -> None:
    tokenizer = KINDS[kind]
    stream = tokenizer.stream(skip_special_tokens=skip)
    deltas = [stream.add(token_id) for token_id in ids] + [stream.flush()]
    assert "".join(deltas) == tokenizer.decode(ids, skip_special_tokens=skip)


@given(text=st.text(alphabet="aé你😀 \n", max_size=30))
def test_characters_arrive_whole_and_soon(text: str) -> None:
    tokenizer = KINDS["byte_level"]
    stream, shown, ids = tokenizer.stream(), "", tokenizer.encode(text)
    for index, token_id in enumerate(ids):
        shown += stream.add(token_id)
        assert "�" not in shown
        done = b"".join(tokenizer.token_bytes(each) for each in ids[: index + 1])
        assert shown == done.decode(errors="ignore")
    assert shown == text


def test_token_bytes() -> None:
    plain, pieces = KINDS["byte_level"], KINDS["sentencepiece_like"]
    assert [plain.token_bytes(i) for i in plain.encode("é")] == [b"\xc3", b"\xa9"]
    assert plain.token_text(plain.encode("é")[0]) == "�" and plain.token_bytes(0) == b"<s>"
    assert pieces.token_bytes(3 + 0xE4) == b"\xe4" and pieces.token_bytes(5000) == b""


@pytest.mark.parametrize(
    ("config", "has_bos", "has_eos"),
    [
        ({}, True, False),
        ({"add_bos_token": False}, False, False),
        ({"add_bos_token": True, "add_eos_token": True}, True, True),
    ],
)
def test_begin_and_end_tokens_follow_the_configuration(config: dict[str, Any], has_bos: bool, has_eos: bool) -> None:
    backend = make_tokenizer()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = Tokenizer(backend, {"bos_token": "<s>", "eos_token": "</s>", **config})
    plain = tokenizer.encode("the", add_special_tokens=False)
    assert tokenizer.encode("the") == [*([0] * has_bos), *plain, *([1] * has_eos)]
    assert tokenizer.encode("<s>the", add_special_tokens=False) == [0, *plain]


def test_an_end_token_in_the_text_is_not_taken_for_an_added_one() -> None:
    backend = make_tokenizer()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    config = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True, "add_eos_token": False}
    assert Tokenizer(backend, config).encode("</s>") == [0, 1]
    assert Tokenizer(backend, {**config, "add_bos_token": False}).encode("<s></s>") == [0, 1]


def test_damaged_tokenizers_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="has no tokenizer.json"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="tokenizer.json is damaged"):
        Tokenizer.load(tmp_path)
    make_tokenizer().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(["a"]))
    with pytest.raises(ModelError, match="must hold a JSON object"):
        Tokenizer.load(tmp_path)


class Letters:
    """A detokenizer whose token ids index pieces of text."""

    def __init__(self, pieces: list[str]) -> None:
        self.pieces = pieces

    def add(self, token_id: int) -> str:
        return self.pieces[token_id]

    def flush(self) -> str:
        return ""


def reference(text: str, stops: list[str], keeps: bool) -> tuple[str, str | None]:
    """Character by character: the text ends when it ends with a stop string, the longest of them."""
    for end in range(1, len(text) + 1):
        hits = [stop for stop in stops if text[:end].endswith(stop)]
        if hits:
            stop = max(hits, key=len)
            return text[: end if keeps else end - len(stop)], stop
    return text, None


@given(
    pieces=st.lists(st.text(alphabet="ab", max_size=4), max_size=12),
    stops=st.lists(st.text(alphabet="ab", min_size=1, max_size=5), max_size=4),
    keeps=st.booleans(),
)
def test_stop_strings(pieces: list[str], stops: list[str], keeps: bool) -> None:
    output = TextOutput(Letters(pieces), stops, keeps_stop=keeps)
    expected, stop = reference("".join(pieces), stops, keeps)
    shown = ""
    for token_id in range(len(pieces)):
        shown += output.add(token_id)
        assert expected.startswith(shown), "part of a stop string went out"
        if output.stop is not None:
            break
    shown += output.finish()
    assert (shown, output.stop) == (expected, stop)


def test_only_what_could_become_a_stop_string_is_held() -> None:
    output = TextOutput(Letters(["Hello EN", "D", "", " or"]), ["END."])
    assert [output.add(token_id) for token_id in range(4)] == ["Hello ", "", "", "END or"]


def test_the_first_tokens_are_exempt() -> None:
    output = TextOutput(Letters(["ab", "ab", "ab"]), ["ab"], min_tokens=2)
    assert [output.add(token_id) for token_id in range(3)] == ["ab", "ab", ""]
    assert output.stop == "ab"


def test_equal_ends_take_the_longest() -> None:
    match = find_stop("xxabcyy", ["bc", "abc", "yy"])
    assert match is not None and (match.start, match.stop) == (2, "abc")


def test_no_tokenizer_no_text() -> None:
    output = TextOutput(None, ["a"])
    assert output.add(3) == "" and output.finish() == ""
