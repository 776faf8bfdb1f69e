# SPDX-License-Identifier: Apache-2.0
"""The entry point: exit codes, one line per error, and a list of verbs that costs nothing."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

import ziggurat
from ziggurat.cli import main as entry
from ziggurat.errors import DoesNotFit, Loading

ROOT = Path(__file__).parents[3]


class FakeVerb:
    def __init__(self, action: Callable[[], int]) -> None:
        self.action = action

    def run(self, argv: Sequence[str]) -> int:
        return self.action()


def run_with(monkeypatch: pytest.MonkeyPatch, action: Callable[[], int]) -> int:
    monkeypatch.setattr(entry, "load", lambda verb: FakeVerb(action))
    return entry.main(["systems"])


def raising(error: BaseException) -> Callable[[], int]:
    def action() -> int:
        raise error

    return action


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (DoesNotFit("needs 2 GiB,\n1 GiB free", needed_bytes=2, available_bytes=1), 1, "needs 2 GiB, 1 GiB free"),
        (Loading("not ready"), 1, "not ready"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_errors_are_one_line_and_a_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException, code: int, line: str
) -> None:
    assert run_with(monkeypatch, raising(error)) == code
    captured = capsys.readouterr()
    assert captured.err == f"ziggurat: {line}\n"
    assert captured.out == ""


def test_our_own_fault_shows_the_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_with(monkeypatch, raising(ZeroDivisionError("oops"))) == 3
    captured = capsys.readouterr().err
    assert "Traceback" in captured
    assert captured.splitlines()[-1].startswith("ziggurat: internal error, please report it")


def test_the_verbs_own_code_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_with(monkeypatch, lambda: 0) == 0
    assert run_with(monkeypatch, lambda: 7) == 7


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["sytems"], "unknown verb 'sytems', did you mean 'systems'? See `ziggurat --help`"),
        (["qqqq"], "unknown verb 'qqqq'. See `ziggurat --help`"),
        (["--verbose"], "unknown flag '--verbose'"),
        (["systems", "--fromat", "json"], "unknown flag '--fromat', did you mean '--format'?"),
    ],
)
def test_wrong_command_lines_end_with_two(argv: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.main(argv) == 2
    assert says in capsys.readouterr().err


def test_no_verb_prints_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.main([]) == 2
    text = capsys.readouterr().err
    assert all(verb in text for verb in entry.VERBS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.main(["--version"]) == 0
    assert capsys.readouterr().out == f"ziggurat {ziggurat.__version__}\n"


def test_help_of_every_verb_loads_no_torch() -> None:
    code = (
        "import contextlib, io, sys\n"
        "from ziggurat.cli.main import VERBS, load, main\n"
        "assert main(['--help']) == 0\n"
        "assert 'ziggurat.engine.config' not in sys.modules, 'the list of verbs loads a verb'\n"
        "for verb in VERBS:\n"
        "    text = load(verb).parser().format_help()\n"
        "    assert text.startswith('usage: ziggurat ' + verb), verb\n"
        "    with contextlib.redirect_stdout(io.StringIO()) as out:\n"
        "        try:\n"
        "            main([verb, '--help'])\n"
        "        except SystemExit as stop:\n"
        "            assert stop.code == 0\n"
        "    assert out.getvalue() == text, verb\n"
        "for heavy in ('torch', 'transformers', 'fastapi', 'uvicorn'):\n"
        "    assert heavy not in sys.modules, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_help_is_quick() -> None:
    """Under 0.3 s on an idle machine; the bound leaves room for a busy one, so the best of five counts."""
    seconds = []
    for _ in range(5):
        start_s = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", "ziggurat", "--help"], cwd=ROOT, capture_output=True, check=False)
        seconds.append(time.perf_counter() - start_s)
        assert done.returncode == 0
        if seconds[-1] < 0.3:
            break
    assert min(seconds) < 1.5, seconds


def test_python_dash_m_and_a_closed_pipe() -> None:
    script = f"{sys.executable} -m ziggurat systems --format json | head -c 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout in ("[0\n", "[141\n")
    assert done.stderr == ""
    done = subprocess.run(
        [sys.executable, "-m", "ziggurat", "systems", "--format", "json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert len(json.loads(done.stdout)) == 85


@pytest.mark.parametrize(
    ("body", "code", "err"),
    [
        # A library that swallows everything while it is imported must not swallow Ctrl-C.
        ("", 130, "ziggurat: interrupted\n"),
        ("with raise_interrupts():", 0, "seen\n"),
    ],
)
def test_ctrl_c_cannot_be_swallowed_by_an_import(body: str, code: int, err: str) -> None:
    code_lines = [
        "import os, signal, sys",
        "from ziggurat.cli import main as entry",
        "from ziggurat.cli.interrupt import raise_interrupts",
        "class Verb:",
        "    def run(self, argv):",
        f"        {body or 'if True:'}",
        "            try: os.kill(os.getpid(), signal.SIGINT); signal.sigtimedwait([], 5)",
        "            except BaseException: print('seen', file=sys.stderr)",
        "        return 0",
        "entry.load = lambda verb: Verb()",
        "sys.exit(entry.main(['systems']))",
    ]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(code_lines)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (code, err)


def test_the_handler_of_the_caller_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGINT)
    assert run_with(monkeypatch, lambda: int(signal.getsignal(signal.SIGINT) is before)) == 0
    assert signal.getsignal(signal.SIGINT) is before


def test_several_models_are_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.main(["serve", "one/model", "--port", "0", "other/model", "third"]) == 1
    err = capsys.readouterr().err
    assert "several models in one server are not built yet, and one/model, other/model, third were named" in err


def test_one_server_has_one_address(capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.main(["serve", "--uds", "/tmp/z", "--port", "0"]) == 2
    assert "--uds and --port name two addresses" in capsys.readouterr().err
