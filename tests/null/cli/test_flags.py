# SPDX-License-Identifier: Apache-2.0
"""Flags follow from dataclasses: spelling, types, lists, unknown names, and only what was given reaches the dataclass."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from ziggurat.cli.flags import Parser, UsageError, add_flags, build, flags_of
from ziggurat.engine.config import EngineConfig, option
from ziggurat.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """One field of every kind that can be a flag."""

    max_model_len: str | int | None = option(None, "tokens", group="memory")
    num_threads: int | None = option(None, "threads")
    top_p: float = option(1.0, "nucleus, 100 % keeps all")
    stream: bool = option(True, "print while it runs")
    mode: Literal["fast", "exact"] = option("fast", "which", choices=("fast", "exact"))
    stop: tuple[str, ...] = option((), "strings")
    text: tuple[Path, ...] = field(default=(), metadata={"help": "files", "many": True})
    output: Path | None = option(None, "file")
    internal: int = 7


def parse(*argv: str) -> Options:
    parser = Parser("ziggurat test", "A test.")
    parser.add_argument("words", nargs="*")
    add_flags(parser, flags_of(Options))
    return build(Options, parser.parse(argv))


def test_nothing_given_leaves_the_defaults_to_the_dataclass() -> None:
    assert parse() == Options()


def test_every_kind_is_converted() -> None:
    options = parse(
        *("--max-model-len", "auto", "--num-threads", "2", "--top-p", "0.5", "--no-stream", "--mode", "exact"),
        *("--stop", "a", "--stop", "b", "--text", "c", "d", "--output", "x.json"),
    )
    assert options == Options(
        max_model_len="auto",
        num_threads=2,
        top_p=0.5,
        stream=False,
        mode="exact",
        stop=("a", "b"),
        text=(Path("c"), Path("d")),
        output=Path("x.json"),
    )


def test_underscores_are_dashes_in_names_only() -> None:
    assert parse("--max_model_len=a_b", "--stop", "c_d") == Options(max_model_len="a_b", stop=("c_d",))


def test_positional_words_may_stand_between_flags() -> None:
    parser = Parser("ziggurat test", "A test.")
    parser.add_argument("words", nargs="*")
    add_flags(parser, flags_of(Options))
    namespace = parser.parse(["one", "--num-threads", "3", "two", "--no-stream", "three"])
    assert namespace.words == ["one", "two", "three"]
    assert build(Options, namespace) == Options(num_threads=3, stream=False)


def test_after_two_dashes_words_are_taken_as_they_are() -> None:
    parser = Parser("ziggurat test", "A test.")
    parser.add_argument("words", nargs="*")
    add_flags(parser, flags_of(Options))
    assert parser.parse(["--num-threads", "3", "--", "--top_p is a flag"]).words == ["--top_p is a flag"]
    assert parser.parse(["--", "--top_p"]).words == ["--top_p"]
    assert parser.parse(["one", "--", "--no_such", "--"]).words == ["one", "--no_such", "--"]


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--num-thread", "2"], "unknown flag '--num-thread', did you mean '--num-threads'?"),
        (["--num_thread=2"], "unknown flag '--num-thread', did you mean '--num-threads'?"),
        (["--zzz"], "unknown flag '--zzz'."),
        (["--internal", "1"], "unknown flag '--internal'"),
        (["--mode", "fats"], "'fats' is none of fast, exact, did you mean 'fast'?"),
        (["--num-threads", "two"], "invalid int value: 'two'"),
        (["--num-threads"], "expected one argument"),
        (["-x"], "unexpected argument '-x'"),
    ],
)
def test_a_wrong_command_line_says_what_is_wrong(argv: list[str], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(*argv)
    assert says in str(caught.value)
    assert "See `ziggurat test --help`" in str(caught.value)


def test_only_named_fields_become_flags_when_asked() -> None:
    assert [flag.name for flag in flags_of(Options, only={"internal": "a number"})] == ["--internal"]


def test_help_has_groups_choices_and_defaults() -> None:
    parser = Parser("ziggurat test", "A test.")
    add_flags(parser, flags_of(Options))
    text = parser.format_help()
    assert "memory:\n  --max-model-len TEXT" in text
    assert "--mode fast|exact" in text
    assert "which (default: fast)" in text
    assert "nucleus, 100 % keeps all (default: 1.0)" in text
    assert "(default: None)" not in text


def test_the_engine_checks_its_own_values() -> None:
    parser = Parser("ziggurat test", "A test.")
    add_flags(parser, flags_of(EngineConfig))
    assert build(EngineConfig, parser.parse(["--memory", "1GiB"])).memory == "1GiB"
    with pytest.raises(ConfigError, match="block_size must be an integer of at least 1, got 0"):
        build(EngineConfig, parser.parse(["--block-size", "0"]))
    with pytest.raises(ConfigError, match="not a size"):
        build(EngineConfig, parser.parse(["--memory", "much"]))
