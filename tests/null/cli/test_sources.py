# SPDX-License-Identifier: Apache-2.0
"""Flag > environment > file > default, for every kind of flag; unknown names are errors; what is shown can be read again."""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ziggurat.cli import sources
from ziggurat.cli.flags import Parser, add_flags, build, flags_of
from ziggurat.cli.main import main
from ziggurat.cli.sources import source_of, variable
from ziggurat.engine.config import option
from ziggurat.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """One field of every kind that can be a flag, by the names of `serve`, so that a verb of ours can be asked for them."""

    max_model_len: str | int | None = option(None, "tokens")
    port: int = option(8000, "a number")
    log_interval: float = option(5.0, "seconds")
    enable_prefix_caching: bool = option(True, "a switch")
    dtype: str = option("auto", "one of several", choices=("auto", "float32"))
    api_key: tuple[str, ...] = option((), "several", is_secret=True)
    stop: tuple[str, ...] = option((), "several")
    api_key_file: Path | None = option(None, "a file")


def parser() -> Parser:
    made = Parser("ziggurat serve", "A test.")
    add_flags(made, flags_of(Options))
    return made


def parse(*argv: str) -> Options:
    return build(Options, parser().parse(argv))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "ziggurat.toml"


def test_the_order_of_sources(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("port = 1\nlog_interval = 1\ndtype = 'float32'\n", encoding="utf-8")
    monkeypatch.setenv("ZIGGURAT_PORT", "2")
    monkeypatch.setenv("ZIGGURAT_LOG_INTERVAL", "2")
    namespace = parser().parse(["--config", str(file), "--port", "3"])
    assert build(Options, namespace) == Options(port=3, log_interval=2.0, dtype="float32")
    assert [source_of(namespace, name) for name in ("port", "log_interval", "dtype", "stop")] == [
        "flag",
        "environment ZIGGURAT_LOG_INTERVAL",
        f"file {file}",
        "default",
    ]


EVERY = {
    "max_model_len": ("auto", "auto", "auto"),
    "port": (7, "7", 7),
    "log_interval": (1.5, "1.5", 1.5),
    "enable_prefix_caching": (False, "no", False),
    "dtype": ("float32", "float32", "float32"),
    "api_key": (("a", "b"), "a\nb\n", ["a", "b"]),
    "stop": (("x y",), "x y", "x y"),
    "api_key_file": (Path("k"), "k", "k"),
}


def test_every_kind_has_an_example() -> None:
    assert list(EVERY) == [field.name for field in fields(Options)]


@pytest.mark.parametrize("name", EVERY)
def test_every_kind_comes_from_the_environment_and_from_a_file(
    name: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, text, value = EVERY[name]
    for spelling in (name, name.replace("_", "-")):
        file.write_text(f"{spelling} = {sources._toml(value)}\n", encoding="utf-8")
        assert getattr(parse("--config", str(file)), name) == expected
    monkeypatch.setenv(variable(name), text)
    assert getattr(parse(), name) == expected


def test_numbers_are_sizes_and_lengths_too(file: Path) -> None:
    file.write_text("max_model_len = 4096\nlog-interval = 2\n", encoding="utf-8")
    assert parse("--config", str(file)) == Options(max_model_len="4096", log_interval=2.0)


def test_the_file_of_a_variable(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("port = 1", encoding="utf-8")
    monkeypatch.setenv("ZIGGURAT_CONFIG", str(file))
    assert parse().port == 1


def test_a_verbs_own_table_wins_and_tables_of_others_are_theirs(file: Path) -> None:
    file.write_text(
        "port = 1\nlog_interval = 1\n[serve]\nport = 2\n[chat]\nsystem = 'x'\n[bench.serve]\nseed = 1\n",
        encoding="utf-8",
    )
    assert parse("--config", str(file)) == Options(port=2, log_interval=1.0)


def test_a_kind_of_bench_has_a_table_in_its_verbs(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text("memory = '1GiB'\n[bench]\nthreads = 1\nseed = 5\n[bench.serve]\nseed = 7\n", encoding="utf-8")
    with pytest.raises(SystemExit) as caught:
        main(["bench", "serve", "--config", str(file), "--show-config"])
    assert caught.value.code == 0
    shown = tomllib.loads(capsys.readouterr().out)["bench"]["serve"]
    assert shown == {"memory": "1GiB", "threads": 1, "seed": 7}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("prot = 1", "'prot' is no setting of `ziggurat serve`, did you mean 'port'?"),
        ("[serve]\nprot = 1", r"\[serve\]: 'prot' is no setting of `ziggurat serve`, did you mean 'port'?"),
        ("[sreve]\nport = 1", r"the table \[sreve\] is for no verb, did you mean 'serve'?"),
        ("[serve.more]\nport = 1", r"the table \[serve.more\] is for no verb"),
        ("serve = 1", "'serve' is no setting of `ziggurat serve`"),
        ("zzzz = 1", "'zzzz' is no setting of `ziggurat serve`$"),
        ("batch_size = 1", "another verb has it: put it into that verb's table"),
        ("log_interval = 1\nlog-interval = 2", "log_interval is given twice, with _ and with -"),
        ("port = 'x'", "port must be a value of the kind int, got 'x'"),
        ("port = 1.5", "port must be a value of the kind int, got 1.5"),
        ("port = true", "port must be one value of the kind int, got True"),
        ("port = [1]", r"port must be one value of the kind int, got \[1\]"),
        ("dtype = 'float23'", "dtype: 'float23' is none of auto, float32, did you mean 'float32'?"),
        ("enable_prefix_caching = 1", "enable_prefix_caching must be true or false, got 1"),
        ("api_key = [[1]]", "got a value that is not shown"),
        ("port = ]", "is not TOML: .*line 1"),
    ],
)
def test_mistakes_in_a_file(text: str, says: str, file: Path) -> None:
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=says) as caught:
        parse("--config", str(file))
    assert str(file) in str(caught.value)


def test_no_such_file(file: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the configuration .*: No such file"):
        parse("--config", str(file))


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("ZIGGURAT_PROT", "1", "ZIGGURAT_PROT is no setting, did you mean 'ZIGGURAT_PORT'?"),
        ("ZIGGURAT_SERVICE_HOST", "10.0.0.1", "Kubernetes sets .* enableServiceLinks"),
        ("ZIGGURAT_PORT", "", "ZIGGURAT_PORT must be a value of the kind int, got ''"),
        ("ZIGGURAT_ENABLE_PREFIX_CACHING", "maybe", "must be true or false, got 'maybe'"),
        ("ZIGGURAT_API_KEY", " \n", "ZIGGURAT_API_KEY is set and empty"),
        ("ZIGGURAT_DTYPE", "x", "'x' is none of auto, float32"),
    ],
)
def test_mistakes_in_the_environment(name: str, text: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, text)
    with pytest.raises(ConfigError, match=says):
        parse()


def test_a_variable_of_another_verb_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZIGGURAT_GRANULARITY", "1")
    assert parse() == Options()


def test_a_mistake_ends_the_program_with_one_line(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text("memry = '1GiB'", encoding="utf-8")
    assert main(["plan", "--config", str(file)]) == 1
    err = capsys.readouterr().err
    assert "did you mean 'memory'?" in err
    assert err.count("\n") == 1


def test_secrets_are_counted_and_not_shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZIGGURAT_API_KEY", "sk-hidden")
    with pytest.raises(SystemExit):
        main(["serve", "--admin-api-key", "sk-hidden", "--show-config"])
    out = capsys.readouterr().out
    assert "# api_key: 1 not shown  # environment ZIGGURAT_API_KEY" in out
    assert "# admin_api_key: 1 not shown  # flag" in out
    assert "sk-hidden" not in out


def test_the_model_is_a_setting_like_others(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZIGGURAT_MODEL", "from/environment")
    for argv, line in (
        (["plan", "--show-config"], 'model = "from/environment"  # environment ZIGGURAT_MODEL'),
        (["plan", "a/folder", "--show-config"], 'model = "a/folder"  # argument'),
        (["plan", "--model", "a/flag", "--show-config"], 'model = "a/flag"  # flag'),
        (["complete", "a/word", "a prompt", "--show-config"], 'model = "a/word"  # argument'),
        (["complete", "a/word", "--file", "x", "--show-config"], 'model = "a/word"  # argument'),
        (["complete", "a prompt", "--show-config"], 'model = "from/environment"  # environment ZIGGURAT_MODEL'),
    ):
        with pytest.raises(SystemExit):
            main(argv)
        assert line in capsys.readouterr().out.splitlines()


VALUES: dict[str, st.SearchStrategy[Any]] = {
    "max_model_len": st.text(st.characters(exclude_categories=("Cs",)), min_size=1),
    "port": st.integers(),
    "log_interval": st.floats(allow_nan=False),
    "enable_prefix_caching": st.booleans(),
    "dtype": st.sampled_from(["auto", "float32"]),
    "stop": st.lists(st.text(st.characters(exclude_categories=("Cs",)))).map(tuple),
}


@given(st.fixed_dictionaries({}, optional=VALUES))
def test_what_is_shown_is_what_is_read(values: dict[str, Any]) -> None:
    """The TOML that --show-config prints, read again, gives the same settings; tomllib is the judge of the syntax."""
    made = parser()
    namespace = made.parse([])
    for name, value in values.items():
        setattr(namespace, name, value)
        namespace.sources[name] = "flag"
    table = tomllib.loads(sources.show(["serve"], made.flags, namespace))["serve"]
    read = {name: sources.from_toml(made.flags[name], value, "x") for name, value in table.items()}
    again = parser().parse([])
    for name, value in read.items():
        setattr(again, name, value)
    assert build(Options, again) == build(Options, namespace) == Options(**values)


def test_the_environment_is_read_in_one_file() -> None:
    """The folder of real data is no setting of a verb and has a file of its own."""
    root = Path(sources.__file__).parents[1]
    prefix = "ZIGGURAT" + "_"
    named = [path.name for path in root.rglob("*.py") if prefix in path.read_text(encoding="utf-8")]
    assert sorted(named) == ["data.py", "sources.py"]
    assert not any(name.startswith(prefix) and name != sources.DATA_VARIABLE for name in os.environ)
