# SPDX-License-Identifier: Apache-2.0
"""The list of flags is frozen: a new flag must delete one or argue why in its changelog entry, and then change flags.json."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ziggurat.cli.pages import commands, parser_of

FROZEN: dict[str, list[str]] = json.loads(Path(__file__).with_name("flags.json").read_text(encoding="utf-8"))

COMMANDS = sorted(commands())


def test_the_verbs_are_the_frozen_ones() -> None:
    assert sorted(FROZEN) == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_the_flags_are_the_frozen_ones(command: str) -> None:
    assert sorted(parser_of(command).flag_names()) == FROZEN[command]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_has_a_help_text(command: str) -> None:
    assert all(action.help for action in parser_of(command)._actions)


@pytest.mark.parametrize(
    "command", sorted(set(COMMANDS) - {"serve", "chat", "train", "bench", "trace", "hardware", "recall"})
)
def test_verbs_with_a_result_print_text_or_json_anywhere(command: str) -> None:
    assert {"--format", "--output"} <= set(FROZEN[command])
