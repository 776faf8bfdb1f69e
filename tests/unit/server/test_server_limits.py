# SPDX-License-Identifier: Apache-2.0
"""The server's own settings, and texts that are given up before they are tokenized as a whole."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from ziggurat.engine.tokenizer import Tokenizer
from ziggurat.errors import ConfigError
from ziggurat.server.bodies import Bodies
from ziggurat.server.body import read_body
from ziggurat.server.config import ServerConfig
from ziggurat.server.engine_text import PIECE_CHARACTERS, WHOLE_CHARACTERS, refuse_hopeless
from ziggurat.server.errors import BodyTooLarge, PromptTooLong, error_object


@pytest.mark.parametrize(
    "settings",
    [
        {"port": -1},
        {"port": 65536},
        {"port": True},
        {"host": ""},
        {"shutdown_timeout": -1},
        {"log_interval": 1e9},
        {"body_timeout": 0},
        {"max_body_size": 10},
    ],
)
def test_settings_out_of_range(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        ServerConfig(**settings)


class Words:
    """A tokenizer that takes ``size`` characters per token and remembers how much it was given."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.num_characters = 0

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        self.num_characters += len(text)
        return [0] * -(-len(text) // self.size)


def refuse(tokenizer: Words, num_characters: int, max_model_len: int) -> None:
    refuse_hopeless(cast(Tokenizer, tokenizer), "a" * num_characters, max_model_len, "prompt")


def test_a_hopeless_text_is_not_read_to_its_end() -> None:
    tokenizer = Words(4)
    with pytest.raises(PromptTooLong, match="maximum context length is 1000 tokens.*Counting stopped") as caught:
        refuse(tokenizer, 4_000_000, 1000)
    assert tokenizer.num_characters == PIECE_CHARACTERS
    assert error_object(caught.value)["code"] == "context_length_exceeded"
    assert 1000 < caught.value.num_prompt_tokens < 2 * PIECE_CHARACTERS


@pytest.mark.parametrize(("num_characters", "max_model_len"), [(WHOLE_CHARACTERS, 10), (100_000, 100_000), (0, 10)])
def test_short_texts_and_those_that_fit_anyhow_are_not_counted(num_characters: int, max_model_len: int) -> None:
    tokenizer = Words(1)
    refuse(tokenizer, num_characters, max_model_len)
    assert tokenizer.num_characters == 0


def test_a_text_that_fits_is_never_refused() -> None:
    for size in (2, 5, 100):
        num_characters = WHOLE_CHARACTERS * 4
        refuse(Words(size), num_characters, -(-num_characters // size))


class Parts:
    """A request whose body comes in parts."""

    headers: dict[str, str] = {}

    def __init__(self, sizes: list[int]) -> None:
        self._sizes = sizes

    async def stream(self) -> AsyncIterator[bytes]:
        for size in self._sizes:
            yield b"x" * size


def test_only_what_is_thrown_away_is_slowed_down(monkeypatch: pytest.MonkeyPatch) -> None:
    bodies, pauses = Bodies(ServerConfig(max_body_size=4096)), []

    async def pause() -> None:
        pauses.append(bodies.num_bytes)

    monkeypatch.setattr(bodies, "pause_discarding", pause)

    async def read(sizes: list[int]) -> bytes:
        with bodies.hold() as held:
            return await read_body(cast(Any, Parts(sizes)), held)

    assert len(asyncio.run(read([2048, 2048]))) == 4096 and pauses == []
    with pytest.raises(BodyTooLarge):
        asyncio.run(read([2048, 2048, 1, 5000]))
    assert pauses == [0, 0]


def test_giants_are_thrown_away_one_part_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten that are read at once share the pace of one."""
    bodies, sleeping, most = Bodies(ServerConfig()), 0, 0
    sleep = asyncio.sleep

    async def watched(seconds: float) -> None:
        nonlocal sleeping, most
        sleeping += 1
        most = max(most, sleeping)
        await sleep(0)
        sleeping -= 1

    monkeypatch.setattr(asyncio, "sleep", watched)

    async def ten() -> None:
        await asyncio.gather(*(bodies.pause_discarding() for _ in range(10)))

    asyncio.run(ten())
    assert most == 1
