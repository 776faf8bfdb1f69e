# SPDX-License-Identifier: Apache-2.0
"""The list of flags is frozen: a new flag must delete one or argue why in its changelog entry, and then change flags.json."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ziggurat.cli.main import VERBS, load

FROZEN: dict[str, list[str]] = json.loads(Path(__file__).with_name("flags.json").read_text(encoding="utf-8"))


def test_the_verbs_are_the_frozen_ones() -> None:
    assert sorted(FROZEN) == sorted(VERBS)


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_the_flags_are_the_frozen_ones(verb: str) -> None:
    assert sorted(load(verb).parser().flag_names()) == FROZEN[verb]


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_flag_has_a_help_text(verb: str) -> None:
    assert all(action.help for action in load(verb).parser()._actions)


@pytest.mark.parametrize("verb", sorted(set(VERBS) - {"serve", "chat", "train"}))
def test_verbs_with_a_result_print_text_or_json_anywhere(verb: str) -> None:
    assert {"--format", "--output"} <= set(FROZEN[verb])
