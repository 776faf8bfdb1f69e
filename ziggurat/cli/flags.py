# SPDX-License-Identifier: Apache-2.0
"""Flags from dataclasses: a field with a ``help`` in its metadata is a flag, and nothing is written down twice.

``max_model_len: int | None = option(None, "tokens per sequence")`` becomes ``--max-model-len N``; ``_`` is taken for ``-``; a bool
becomes ``--flag`` and ``--no-flag``; a tuple may be given several times. Only flags that were given reach the dataclass, so that its
own defaults and checks are the only ones.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from ziggurat.cli import sources
from ziggurat.registry import nearest

T = TypeVar("T")
_KINDS: tuple[type, ...] = (str, Path, float, int, bool)
# No word of a command line can hold this character.
_MARK = "\0"
_METAVARS = {str: "TEXT", Path: "PATH", float: "X", int: "N"}


class UsageError(Exception):
    """The command line cannot be understood; exit code 2."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """One flag as it follows from a field.

    Attributes:
        kind: the type of one value.
        is_list: the flag may be given several times.
        takes_many: several values may follow one flag.
    """

    field: str
    help: str
    group: str
    kind: type
    is_list: bool
    takes_many: bool
    choices: tuple[str, ...] | None
    default: Any
    is_secret: bool = False

    @property
    def name(self) -> str:
        """As it is typed: ``--max-model-len``; a field named like a word of Python has an underscore more (``from_``)."""
        return f"--{self.field.rstrip('_').replace('_', '-')}"


class _Help(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34, width=110)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that spells flags out, takes ``_`` for ``-``, names the nearest flag, and raises instead of exiting.

    Attributes:
        flags: field -> flag, of those that environment and file may set too (see `ziggurat.cli.sources`).
    """

    def __init__(self, prog: str, description: str, epilog: str | None = None) -> None:
        super().__init__(prog=prog, description=description, epilog=epilog, allow_abbrev=False, formatter_class=_Help)
        self.flags: dict[str, Flag] = {}

    def error(self, message: str) -> NoReturn:
        end = "" if message.endswith("?") else "."
        raise UsageError(f"{message}{end} See `{self.prog} --help`")

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parse; flags and positional arguments may be mixed. What is left out comes from the environment or a file.

        ``--show-config`` prints the outcome and ends the program, as ``--help`` does.

        Raises:
            UsageError: an unknown flag, a missing or malformed value, too many arguments.
            ConfigError: environment or file are wrong.
        """
        namespace, rest = self.parse_known_intermixed_args(_shield(argv))
        for name, value in vars(namespace).items():
            setattr(namespace, name, [_bare(word) for word in value] if isinstance(value, list) else _bare(value))
        unknown = [word for word in rest if word.startswith("--")]
        if unknown:
            self.error(f"unknown flag {_name(unknown[0])!r}{nearest(_name(unknown[0]), self.flag_names())}")
        if rest:
            self.error(f"unexpected argument {rest[0]!r}")
        if "--config" in self.flag_names():
            verb = self.prog.split()[1:]
            namespace.positional_model = self.typed_model(namespace)
            sources.fill(verb, self.flags, namespace, os.environ)
            if namespace.show_config:
                print(sources.show(verb, self.flags, namespace))
                raise SystemExit(0)
        return namespace

    def typed_model(self, namespace: argparse.Namespace) -> str | None:
        """The model among the words of the command line; a verb that has it elsewhere says where."""
        model: str | None = getattr(namespace, "positional_model", None)
        return model

    def flag_names(self) -> list[str]:
        """Every long flag, in order of definition."""
        return [name for action in self._actions for name in action.option_strings if name.startswith("--")]


def _name(word: str) -> str:
    return word.partition("=")[0]


def _shield(argv: Sequence[str]) -> list[str]:
    """``--max_model_len=8_192`` -> ``--max-model-len=8_192``; what follows ``--`` is marked, so that nothing in it is taken for a flag.

    argparse forgets about ``--`` when flags and positional arguments are mixed, hence the mark.
    """
    end = list(argv).index("--") if "--" in argv else len(argv)
    words = []
    for word in argv[:end]:
        name, equals, value = word.partition("=")
        words.append(f"{name.replace('_', '-')}{equals}{value}" if word.startswith("--") else word)
    return [*words, *(f"{_MARK}{word}" for word in argv[end + 1 :])]


def _bare(value: Any) -> Any:
    return value.removeprefix(_MARK) if isinstance(value, str) else value


def flags_of(cls: type, *, only: Mapping[str, str] | None = None) -> list[Flag]:
    """The flags of a dataclass.

    Args:
        only: field -> help text, for a dataclass whose fields carry no help; other fields make no flag.
    """
    hints = typing.get_type_hints(cls)
    flags = []
    for field in dataclasses.fields(cls):
        text = field.metadata.get("help") if only is None else only.get(field.name)
        if text is None:
            continue
        kind, is_list = _kind(hints[field.name])
        flags.append(
            Flag(
                field=field.name,
                help=text,
                group=field.metadata.get("group", "options"),
                kind=kind,
                is_list=is_list,
                takes_many=is_list and bool(field.metadata.get("many")),
                choices=field.metadata.get("choices"),
                default=None if field.default is dataclasses.MISSING else field.default,
                is_secret=bool(field.metadata.get("is_secret")),
            )
        )
    return flags


def _kind(hint: Any) -> tuple[type, bool]:
    """The type of one value, and whether there may be several: ``str | int | None`` -> (str, False), ``tuple[str, ...]`` -> (str, True)."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        kinds = [_kind(part) for part in typing.get_args(hint) if part is not type(None)]
        return min(kinds, key=lambda pair: _KINDS.index(pair[0]))
    if origin in (tuple, list):
        return typing.get_args(hint)[0], True
    if origin is typing.Literal:
        return str, False
    assert hint in _KINDS, f"no flag can be made of the type {hint!r}"
    return hint, False


def add_flags(parser: Parser, flags: Iterable[Flag], *, short: Mapping[str, str] = types.MappingProxyType({})) -> None:
    """Add flags to a parser, under one heading per group, and ``--config`` and ``--show-config`` beside the first ones.

    Args:
        short: field -> a short spelling besides the long one (``-o``).
    """
    if "--config" not in parser.flag_names():
        add_configuration(parser)
    groups = {group.title: group for group in parser._action_groups}
    for flag in flags:
        parser.flags[flag.field] = flag
        if flag.group not in groups:
            groups[flag.group] = parser.add_argument_group(flag.group)
        names = [short[flag.field], flag.name] if flag.field in short else [flag.name]
        groups[flag.group].add_argument(*names, **_settings(flag))


def add_configuration(parser: Parser) -> None:
    """Add the flags that say where settings come from."""
    group = parser.add_argument_group("configuration")
    text = f"TOML file with settings (or {sources.CONFIG_VARIABLE}); flag > environment {sources.PREFIX}.. > file > default"
    group.add_argument("--config", metavar="PATH", dest="config_file", type=Path, help=text)
    text = "print each setting and where it comes from, as TOML, and stop"
    group.add_argument("--show-config", action="store_true", help=text)


def _settings(flag: Flag) -> dict[str, Any]:
    settings: dict[str, Any] = {"dest": flag.field, "default": argparse.SUPPRESS, "help": _help(flag)}
    if flag.kind is bool:
        return {**settings, "action": argparse.BooleanOptionalAction}
    settings["metavar"] = "|".join(flag.choices) if flag.choices else _METAVARS[flag.kind]
    settings["type"] = _among(flag.choices) if flag.choices else flag.kind
    if flag.is_list:
        # Several values after one flag would swallow a prompt that follows, so that is for flags that say so.
        return {**settings, "action": "extend", "nargs": "+"} if flag.takes_many else {**settings, "action": "append"}
    return settings


def _help(flag: Flag) -> str:
    text = flag.help.replace("%", "%%")
    has_default = flag.default not in (None, (), "") and "default" not in text
    default = {True: "yes", False: "no"}.get(flag.default, flag.default) if flag.kind is bool else flag.default
    return f"{text} (default: {default})" if has_default else text


def _among(choices: tuple[str, ...]) -> Callable[[str], str]:
    def convert(text: str) -> str:
        if text not in choices:
            raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(choices)}{nearest(text, list(choices))}")
        return text

    return convert


def build(cls: type[T], namespace: argparse.Namespace, **more: Any) -> T:
    """An instance of the dataclass from the flags that were given and ``more``.

    Raises:
        UserError: whatever the dataclass says about its values.
    """
    given = {name: getattr(namespace, name) for name in _fields(cls) if hasattr(namespace, name)}
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    return cls(**{**given, **more})


def _fields(cls: type) -> list[str]:
    return [field.name for field in dataclasses.fields(cls)]
