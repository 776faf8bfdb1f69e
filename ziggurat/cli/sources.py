# SPDX-License-Identifier: Apache-2.0
"""Where the value of a flag comes from: the command line, then the environment, then a TOML file, then the default.

``--max-model-len 4096``, ``ZIGGURAT_MAX_MODEL_LEN=4096`` and ``max_model_len = 4096`` say the same. This is the only file that reads
variables of that prefix. A file has keys for the verb at its top and tables for single verbs (``[serve]``, ``[bench.serve]``), which win.
"""

from __future__ import annotations

import argparse
import functools
import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ziggurat.errors import ConfigError
from ziggurat.registry import nearest

if TYPE_CHECKING:
    from ziggurat.cli.flags import Flag, Parser

PREFIX = "ZIGGURAT_"
# The folder of real traces, profiles and texts that experiments and tests may read; no setting of a verb (`ziggurat.catalog.data`).
DATA_VARIABLE = "ZIGGURAT_DATA"
CONFIG_VARIABLE = f"{PREFIX}CONFIG"
FLAG, ARGUMENT, DEFAULT = "flag", "argument", "default"
_TRUTH = {
    word: truth for truth, words in ((True, "1 true yes on"), (False, "0 false no off")) for word in words.split()
}


def variable(field: str) -> str:
    """The environment variable of a field: ``ZIGGURAT_MAX_MODEL_LEN``."""
    return PREFIX + field.upper()


def fill(
    verb: Sequence[str], flags: Mapping[str, Flag], namespace: argparse.Namespace, environment: Mapping[str, str]
) -> None:
    """Give ``namespace`` what the command line left out, and ``sources``: field -> where its value came from.

    Args:
        verb: its words, as they name tables: ``("bench", "serve")``.
        flags: field -> flag.
        namespace: as parsed; its ``config_file`` is the file of ``--config``.

    Raises:
        ConfigError: a file that cannot be read, an unknown key or variable, a value that does not fit its flag.
    """
    sources = {field: FLAG for field in flags if hasattr(namespace, field)}
    if "model" in flags and getattr(namespace, "positional_model", None) is not None:
        sources.setdefault("model", ARGUMENT)
    refuse_unknown_variables(flags, environment)
    path = getattr(namespace, "config_file", None) or environment.get(CONFIG_VARIABLE)
    in_file = read_file(Path(path), verb, flags) if path else {}
    for field, flag in flags.items():
        if field in sources:
            continue
        if variable(field) in environment:
            value, sources[field] = from_text(flag, environment[variable(field)]), f"environment {variable(field)}"
        elif field in in_file:
            value, sources[field] = in_file[field]
        else:
            continue
        setattr(namespace, field, value)
    namespace.sources = sources


def source_of(namespace: argparse.Namespace, field: str) -> str:
    """``flag``, ``argument``, ``environment ..``, ``file ..`` or ``default``."""
    sources: Mapping[str, str] = getattr(namespace, "sources", {})
    return sources.get(field, DEFAULT)


def variables_set() -> list[str]:
    """The names of our variables that are set; their values may be secrets."""
    return sorted(name for name in os.environ if name.startswith(PREFIX))


def refuse_unknown_variables(flags: Mapping[str, Flag], environment: Mapping[str, str]) -> None:
    """A variable with our prefix that no verb knows is a typing error; one of another verb's is none of ours.

    Raises:
        ConfigError: there is one.
    """
    if f"{PREFIX}SERVICE_HOST" in environment:
        raise ConfigError(
            f"Kubernetes sets variables such as {PREFIX}PORT for a service of that name, and they are no settings: "
            f"give the service another name, or set enableServiceLinks to false"
        )
    known = {variable(field) for field in flags} | {CONFIG_VARIABLE, DATA_VARIABLE}
    unknown = sorted(name for name in environment if name.startswith(PREFIX) and name not in known)
    if not unknown:
        return
    names = [variable(field) for field in fields_of_all_verbs()]
    for name in unknown:
        if name not in names:
            raise ConfigError(
                f"the environment variable {name} is no setting{nearest(name, [*names, CONFIG_VARIABLE])}"
            )


@functools.cache
def fields_of_all_verbs() -> tuple[str, ...]:
    """The fields of every verb's flags. Reads every verb, so it is for errors and rare cases."""
    return tuple(dict.fromkeys(field for parser in parsers_of_all_verbs() for field in parser.flags))


def parsers_of_all_verbs() -> Iterator[Parser]:
    """The parser of every command, kinds of verbs too."""
    from ziggurat.cli.pages import commands, parser_of

    yield from map(parser_of, commands())


def read_file(path: Path, verb: Sequence[str], flags: Mapping[str, Flag]) -> dict[str, tuple[Any, str]]:
    """The values of a file for a verb, each with its source.

    Raises:
        ConfigError: see `fill`.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"the configuration {path} is not TOML: {error}") from None
    values: dict[str, tuple[Any, str]] = {}
    for name, table in _tables(path, data, verb):
        where = f"{path} [{name}]" if name else str(path)
        found: dict[str, tuple[Any, str]] = {}
        for key, value in table.items():
            field = key.replace("-", "_")
            if field not in flags:
                hint = nearest(field, list(flags))
                raise ConfigError(
                    f"{where}: {key!r} is no setting of `ziggurat {' '.join(verb)}`{hint or _elsewhere(field)}"
                )
            if field in found:
                raise ConfigError(f"{where}: {field} is given twice, with _ and with -")
            found[field] = (from_toml(flags[field], value, where), f"file {where}")
        values |= found
    return values


def _tables(path: Path, data: Mapping[str, Any], verb: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The parts of a file that are for a verb, the most general first: its top, then the tables on the way to the verb's own."""
    names: list[str] = []
    for depth in range(len(verb) + 1):
        _check_tables(path, names, data)
        yield ".".join(names), {key: value for key, value in data.items() if not isinstance(value, dict)}
        if depth == len(verb) or verb[depth] not in data:
            return
        names.append(verb[depth])
        data = data[verb[depth]]


def _check_tables(path: Path, names: Sequence[str], data: Mapping[str, Any]) -> None:
    tables = [key for key, value in data.items() if isinstance(value, dict)]
    if not tables:
        return
    from ziggurat.cli.pages import commands

    words = [command.split() for command in commands()]
    known = [each[-1] for each in words if each[:-1] == list(names)]
    for key in tables:
        if key not in known:
            full = ".".join([*names, key])
            raise ConfigError(f"{path}: the table [{full}] is for no verb{nearest(key, known)}")


def _elsewhere(field: str) -> str:
    if field in fields_of_all_verbs():
        return "; another verb has it: put it into that verb's table, for example below [serve]"
    return ""


def from_text(flag: Flag, text: str) -> Any:
    """The value of a variable; several values stand on lines of their own.

    Raises:
        ConfigError: it does not fit the flag.
    """
    name = variable(flag.field)
    if flag.is_secret and not text.strip():
        # A secret that was not delivered must not leave the door open.
        raise ConfigError(f"{name} is set and empty; give it a value, or unset it")
    if flag.is_list:
        return [_convert(flag, line, name) for line in text.splitlines() if line]
    if flag.kind is bool:
        if text.strip().lower() not in _TRUTH:
            raise ConfigError(f"{name} must be true or false, got {text!r}")
        return _TRUTH[text.strip().lower()]
    return _convert(flag, text, name)


def from_toml(flag: Flag, value: Any, where: str) -> Any:
    """The value of a key.

    Raises:
        ConfigError: it does not fit the flag.
    """
    name = f"{where}: {flag.field}"
    if flag.is_list:
        return [_convert(flag, one, name) for one in (value if isinstance(value, list) else [value])]
    if flag.kind is bool:
        if not isinstance(value, bool):
            raise ConfigError(f"{name} must be true or false, got {value!r}")
        return value
    return _convert(flag, value, name)


def _convert(flag: Flag, value: Any, name: str) -> Any:
    shown = "a value that is not shown" if flag.is_secret else repr(value)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ConfigError(f"{name} must be one value of the kind {flag.kind.__name__}, got {shown}")
    if flag.choices and str(value) not in flag.choices:
        raise ConfigError(
            f"{name}: {shown} is none of {', '.join(flag.choices)}{nearest(str(value), list(flag.choices))}"
        )
    try:
        # By way of text, as on the command line: 1.5 is no int, and a number is a size.
        return flag.kind(str(value))
    except ValueError:
        raise ConfigError(f"{name} must be a value of the kind {flag.kind.__name__}, got {shown}") from None


def show(verb: Sequence[str], flags: Mapping[str, Flag], namespace: argparse.Namespace) -> str:
    """Every setting of a command line with its source, as a TOML file that ``--config`` takes.

    Defaults are comments, so that the file says what was set and no more; secrets are left out.
    """
    name = ".".join(verb)
    lines = [f"# ziggurat {' '.join(verb)}: flag > environment > file > default", f"[{name}]"]
    for field, flag in flags.items():
        source = source_of(namespace, field)
        value = flag.default if source == DEFAULT else _value(namespace, field)
        if flag.is_secret and value:
            lines.append(f"# {field}: {len(value)} not shown  # {source}")
        elif value is None or (value == () and source == DEFAULT):
            lines.append(f"# {field}: not set  # {source}")
        else:
            mark = "# " if source == DEFAULT else ""
            lines.append(f"{mark}{field} = {_toml(value)}  # {source}")
    return "\n".join(lines)


def _value(namespace: argparse.Namespace, field: str) -> Any:
    value = getattr(namespace, field, None)
    return getattr(namespace, "positional_model", None) if field == "model" and value is None else value


def _toml(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(_toml(one) for one in value)}]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    escaped = "".join(
        f"\\u{ord(letter):04x}" if letter in '"\\' or ord(letter) < 32 or ord(letter) == 127 else letter
        for letter in str(value)
    )
    return f'"{escaped}"'
