# SPDX-License-Identifier: Apache-2.0
"""Writes a page per command into ``docs/commands``: ``python -m ziggurat.cli.pages``. What stands above the mark is written by hand and
kept; the rest follows from the parsers, so that no flag is missing."""

from __future__ import annotations

import argparse
from pathlib import Path

from ziggurat.cli.flags import Parser
from ziggurat.cli.kinds import Kinds
from ziggurat.cli.main import VERBS, load

FOLDER = Path(__file__).parents[2] / "docs" / "commands"
MARK = "<!-- From here on the page is written by `make docs`. -->"
INDEX = "README.md"


def commands() -> dict[str, str]:
    """Every command, kinds of verbs too, and what it does in one line."""
    found: dict[str, str] = {}
    for verb, summary in VERBS.items():
        found[verb] = summary
        kinds = kinds_of(verb)
        found |= {f"{verb} {kind}": text for kind, text in kinds.summaries.items()} if kinds else {}
    return found


def kinds_of(verb: str) -> Kinds | None:
    """The kinds of a verb, if it comes in kinds."""
    kinds = getattr(load(verb), "KINDS", None)
    return kinds if isinstance(kinds, Kinds) else None


def parser_of(command: str) -> Parser:
    """The parser of a command of `commands`."""
    verb, _, kind = command.partition(" ")
    kinds = kinds_of(verb)
    return kinds.load(kind).parser() if kind and kinds is not None else load(verb).parser()


def page_name(command: str) -> str:
    """``bench-serve.md``."""
    return f"{command.replace(' ', '-')}.md"


def render(command: str, old: str | None = None) -> str:
    """The page. What ``old`` has above the mark stays."""
    parser = parser_of(command)
    head = f"# ziggurat {command}\n\n{parser.description}\n" if old is None else old.partition(MARK)[0].rstrip() + "\n"
    shown = [action for action in parser._actions if action.help != argparse.SUPPRESS]
    positionals = [action for action in shown if not action.option_strings]
    words = " ".join(_word(action) for action in positionals)
    lines = [head, MARK, "", "```", f"ziggurat {command} {words}".rstrip() + " [flags]", "```"]
    if positionals:
        lines += ["", "| argument | |", "|---|---|"]
        lines += [f"| `{action.metavar or action.dest}` | {_cell(action.help or '')} |" for action in positionals]
    for group in parser._action_groups:
        actions = [action for action in group._group_actions if action.option_strings and action.dest != "help"]
        if actions:
            lines += ["", f"## {(group.title or 'options').capitalize()}", "", "| flag | |", "|---|---|"]
            lines += [f"| {_spelled(action)} | {_cell((action.help or '').replace('%%', '%'))} |" for action in actions]
    return "\n".join(lines) + "\n"


def render_index() -> str:
    """The list of commands."""
    rows = [f"| [`{command}`]({page_name(command)}) | {_cell(summary)} |" for command, summary in commands().items()]
    head = "# Commands\n\nOne page per command, from the parsers: `make docs` writes them. Exit codes are in [errors](../errors.md)."
    return "\n".join([head, "", "| command | what it does |", "|---|---|", *rows]) + "\n"


def _word(action: argparse.Action) -> str:
    word = action.metavar if isinstance(action.metavar, str) else action.dest
    return {"?": f"[{word}]", "*": f"[{word} ..]", "+": f"{word} .."}.get(str(action.nargs), word)


def _spelled(action: argparse.Action) -> str:
    names = ", ".join(f"`{name}`" for name in action.option_strings)
    return names if action.nargs == 0 else f"`{action.option_strings[-1]} {_cell(str(action.metavar or action.dest))}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def main(folder: Path = FOLDER) -> None:
    """Write all pages, and remove those of commands that are gone."""
    folder.mkdir(parents=True, exist_ok=True)
    names = {INDEX}
    for command in commands():
        path = folder / page_name(command)
        names.add(path.name)
        old = path.read_text(encoding="utf-8") if path.exists() else None
        path.write_text(render(command, old), encoding="utf-8")
    (folder / INDEX).write_text(render_index(), encoding="utf-8")
    for path in folder.glob("*.md"):
        if path.name not in names:
            path.unlink()
    print(f"wrote {len(names)} pages into {folder}")


if __name__ == "__main__":
    main()
