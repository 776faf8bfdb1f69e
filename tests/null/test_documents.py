# SPDX-License-Identifier: Apache-2.0
"""Documents that would otherwise rot: every error class has a row, every link leads somewhere, every word stands once."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ziggurat import errors
from ziggurat.cli.main import VERBS
from ziggurat.cli.pages import FOLDER, INDEX, commands, page_name, parser_of, render, render_index
from ziggurat.server.errors import TABLE

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "ziggurat").rglob("*.md")])
_LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


def rows(page: Path) -> list[list[str]]:
    lines = page.read_text(encoding="utf-8").splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]


def test_every_error_class_has_one_row_in_the_order_of_the_tree() -> None:
    classes = [
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.ZigguratError)
    ]
    named = [row[0].strip("`") for row in rows(ROOT / "docs" / "errors.md") if row[0].startswith("`")]
    assert sorted(named) == sorted(classes)


def test_the_http_answers_are_the_servers() -> None:
    described = {row[0].strip("`"): row[3] for row in rows(ROOT / "docs" / "errors.md") if row[0].startswith("`")}
    assert described.pop("ZigguratError") == ""
    for name, text in described.items():
        status, _, rest = text.partition(" ")
        answer = TABLE[next(base for base in getattr(errors, name).__mro__ if base in TABLE)]
        assert int(status) == answer.status, name
        code = answer.code or getattr(errors, name).__dict__.get("code")
        assert not rest or f"`{code}`" in rest, f"{name}: {code} is not in {rest!r}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page: Path) -> None:
    targets = [target for target in _LINK.findall(page.read_text(encoding="utf-8")) if "://" not in target]
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert not missing


_COMMAND = re.compile(r"(?<!from )\bziggurat ([a-z]+)\b((?: +(?:--?[\w=-]+|[^\s`#-][^\s`#]*))*)")


def known_flags(verb: str, rest: str) -> list[str]:
    """Of a verb, or of the kind of it that the next word names."""
    command = f"{verb} {rest.split()[0]}" if rest.split() else verb
    return parser_of(command if command in commands() else verb).flag_names()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_in_documents_exist(page: Path) -> None:
    """Verbs and flags of every `ziggurat ..` in code, inline or fenced."""
    text = page.read_text(encoding="utf-8")
    code = re.findall(r"```[^\n]*\n(.*?)```|`([^`\n]+)`", text, re.DOTALL)
    wrong = []
    for verb, rest in _COMMAND.findall("\n".join(fenced or inline for fenced, inline in code)):
        known = known_flags(verb, rest) if verb in VERBS else []
        wrong += [] if verb in VERBS else [verb]
        wrong += [f"{verb} {flag}" for flag in re.findall(r"--[a-z][\w-]*", rest) if flag not in known]
    assert not wrong


@pytest.mark.parametrize("command", commands())
def test_every_command_has_its_page(command: str) -> None:
    """Up to date with the parser: after a new flag run `make docs`."""
    page = FOLDER / page_name(command)
    assert page.is_file(), "run `make docs`"
    text = page.read_text(encoding="utf-8")
    assert text == render(command, text), "run `make docs`"
    assert [flag for flag in parser_of(command).flag_names() if f"`{flag}" not in text and flag != "--help"] == []


def test_every_page_has_its_command() -> None:
    assert {path.name for path in FOLDER.glob("*.md")} == {INDEX, *map(page_name, commands())}, "run `make docs`"
    assert (FOLDER / INDEX).read_text(encoding="utf-8") == render_index(), "run `make docs`"


def test_the_readme_has_a_row_for_every_verb() -> None:
    text = " ".join(row[0] for row in rows(ROOT / "README.md"))
    assert [verb for verb in VERBS if not re.search(rf"`{verb}\b", text)] == []


def test_the_walk_finds_commands() -> None:
    found = _COMMAND.findall("ziggurat serve org/name --memory 1GiB --port=0 # a comment --no\nziggurat plan")
    assert found == [("serve", " org/name --memory 1GiB --port=0"), ("plan", "")]


def test_the_glossary_is_sorted_and_has_each_word_once() -> None:
    words = [row[0] for row in rows(ROOT / "docs" / "glossary.md")[1:]]
    assert [word.lower() for word in words] == sorted(word.lower() for word in words)
    assert len(set(words)) == len(words)
