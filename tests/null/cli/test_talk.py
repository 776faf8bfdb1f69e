# SPDX-License-Identifier: Apache-2.0
"""``complete`` and ``chat`` with an engine of the test's own: what is sent, what is printed, what ends a request."""

from __future__ import annotations

import asyncio
import io
import json
import signal
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.fake_service import FakeService
from ziggurat.cli import talk
from ziggurat.cli.chat import Conversation
from ziggurat.cli.main import main
from ziggurat.cli.talk import LocalTalker, Message, Piece
from ziggurat.engine.config import EngineConfig
from ziggurat.engine.types import GenerateOutput, GenerateRequest
from ziggurat.errors import EngineError, RequestError


class Letters:
    """A tokenizer whose tokens are characters; special tokens show as a leading ^."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [ord(letter) for letter in ("^" if add_special_tokens else "") + text]


class Template:
    def render(self, messages: Sequence[Message]) -> str:
        return "".join(f"<{message['role']}:{message['content']}>" for message in messages)


class EchoEngine:
    """Gives the prompt back, one character per step, up to max_tokens."""

    def __init__(self, *, tokenizer: Any = None, chat_template: Any = None, fails: bool = False) -> None:
        self.model = SimpleNamespace(
            name="echo", max_model_len=1000, sampling_defaults={"temperature": 0.5, "top_k": 7}
        )
        self.tokenizer = tokenizer
        self.chat_template = chat_template
        self.fails = fails
        self.requests: list[GenerateRequest] = []
        self.aborted: list[str] = []
        self.is_closed = False
        self._left: list[str] = []

    def add(self, request: GenerateRequest) -> None:
        assert not self._left, "the request before has not ended"
        if not request.prompt_ids:
            raise RequestError("the prompt is empty", param="prompt")
        self.requests.append(request)
        self._left = [chr(token) for token in request.prompt_ids][: request.params.max_tokens]

    def step(self) -> list[GenerateOutput]:
        if not self._left:
            return []
        text, request = self._left.pop(0), self.requests[-1]
        reason: Any = "error" if self.fails else None if self._left else "length"
        return [
            GenerateOutput(
                request_id=request.request_id,
                index=0,
                text=text,
                tokens=(),
                finish_reason=reason,
                stop_reason=None,
                num_prompt_tokens=len(request.prompt_ids),
                num_cached_tokens=2,
                num_output_tokens=1,
                error="out of luck" if self.fails else None,
            )
        ]

    def abort(self, request_id: str) -> None:
        self.aborted.append(request_id)
        self._left = []

    @property
    def has_work(self) -> bool:
        return bool(self._left)

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> EchoEngine:
    engine = EchoEngine(tokenizer=Letters(), chat_template=Template())
    configs: list[EngineConfig] = []

    def load(config: EngineConfig) -> EchoEngine:
        configs.append(config)
        return engine

    monkeypatch.setattr(talk, "load_engine", load)
    engine.configs = configs  # type: ignore[attr-defined]
    return engine


def test_complete_prints_the_text_and_closes_the_engine(engine: EchoEngine, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["complete", "hello", "--max-tokens", "4"]) == 0
    assert capsys.readouterr().out == "^hel\n"
    assert engine.is_closed
    assert engine.requests[0].params.temperature == 0.5, "the model's own settings count when nothing is given"


def test_complete_takes_model_settings_and_sampling(engine: EchoEngine, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["complete", "org/name", "--memory", "1GiB", "hi", "--temperature", "0", "--seed", "3", "--stop", "x"]
    assert main([*argv, "--stop", "y", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "model": "echo",
        "text": "^hi",
        "finish_reason": "length",
        "num_prompt_tokens": 3,
        "num_cached_tokens": 2,
        "num_output_tokens": 1,
    }
    (config,) = engine.configs  # type: ignore[attr-defined]
    assert (config.model, config.memory, config.seed) == ("org/name", "1GiB", 0)
    params = engine.requests[0].params
    assert (params.temperature, params.top_k, params.seed, params.stop) == (0, 7, 3, ("x", "y"))
    assert params.max_tokens == 256


def test_the_default_length_leaves_room_for_the_prompt(engine: EchoEngine) -> None:
    for letters, expected in ((10, 256), (900, 99), (2000, 1)):
        assert main(["complete", "x" * letters, "--format", "json"]) == 0
        assert engine.requests[-1].params.max_tokens == expected
    assert main(["complete", "x" * 900, "--max-tokens", "300", "--format", "json"]) == 0
    assert engine.requests[-1].params.max_tokens == 300, "what was asked for is not changed"


def test_complete_reads_standard_input(
    engine: EchoEngine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("ab"))
    assert main(["complete", "-"]) == 0
    assert capsys.readouterr().out == "^ab\n"
    assert main(["complete", "--", "--seed_is"]) == 0
    assert capsys.readouterr().out == "^--seed_is\n"


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        (["complete"], 2, "a prompt is needed"),
        (["complete", "a", "b", "c"], 2, "one prompt is taken, 3 words were given"),
        (["complete", "a", "b", "--model", "c"], 2, "one prompt is taken, 2 words were given"),
        (["complete", "a", "--temperature", "-1"], 1, "temperature must be at least 0"),
        (["complete", "a", "--max-tokens", "0"], 1, "max_tokens must be at least 1"),
        (["complete", "a", "--url", "http://x", "--memory", "1GiB"], 2, "--memory is for a model in this process"),
        (["complete", "a", "--url", "localhost:1"], 1, "must begin with http://, https:// or unix:"),
        (["chat", "--system"], 2, "expected one argument"),
    ],
)
def test_mistakes(
    argv: list[str], code: int, says: str, engine: EchoEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == code
    assert says in capsys.readouterr().err
    assert not engine.requests


def test_a_failing_step_is_our_own_fault(capsys: pytest.CaptureFixture[str]) -> None:
    talker = LocalTalker(EchoEngine(tokenizer=Letters(), fails=True))
    with pytest.raises(EngineError, match="out of luck"):
        list(talker.complete("a", {}))


def test_a_model_without_text_or_template_says_so() -> None:
    with pytest.raises(RequestError, match=r"has no tokenizer\.json"):
        LocalTalker(EchoEngine()).complete("a", {})
    with pytest.raises(RequestError, match="template"):
        LocalTalker(EchoEngine(tokenizer=Letters())).chat([], {})


def test_leaving_early_ends_the_request() -> None:
    engine = EchoEngine(tokenizer=Letters())
    pieces = LocalTalker(engine).complete("abcdef", {})
    assert next(pieces).text == "^"
    pieces.close()
    assert engine.aborted == ["cli-1"]
    assert not engine.has_work


def test_ctrl_c_waits_for_the_end_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = EchoEngine(tokenizer=Letters())
    step, ends = engine.step, []

    def interrupted_step() -> list[GenerateOutput]:
        signal.raise_signal(signal.SIGINT)
        ends.append("whole")
        return step()

    monkeypatch.setattr(engine, "step", interrupted_step)
    with pytest.raises(KeyboardInterrupt):
        next(LocalTalker(engine).complete("abc", {}))
    assert ends == ["whole"]
    assert engine.aborted == ["cli-1"]


def chat(lines: Sequence[str], monkeypatch: pytest.MonkeyPatch, *argv: str) -> int:
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    return main(["chat", *argv])


def test_chat_sends_the_whole_conversation(
    engine: EchoEngine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert chat(["one", "", "two", "/exit", "three"], monkeypatch, "--system", "be brief") == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == "<system:be brief><user:one>"
    assert second == f"<system:be brief><user:one><assistant:{first}><user:two>"
    assert engine.is_closed


def test_chat_commands(engine: EchoEngine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["one", "/undo", "two", "/reset", "three", "/system be kind", "four", "/what", "/help"]
    assert chat(lines, monkeypatch) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines() == ["<user:one>", "<user:two>", "<user:three>", "<system:be kind><user:four>"]
    assert "unknown command '/what'" in captured.err
    assert "/undo         forget the last turn" in captured.err


def test_ctrl_c_at_the_prompt_does_not_leave(
    engine: EchoEngine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[Any] = [KeyboardInterrupt(), "one", EOFError()]

    def ask(prompt: str) -> str:
        answer = answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return str(answer)

    monkeypatch.setattr("builtins.input", ask)
    monkeypatch.setattr("sys.stdin", Terminal())
    assert main(["chat"]) == 0
    assert capsys.readouterr().out == "\n/exit or Ctrl-D leaves\n<user:one>\n\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Scripted:
    """A talker that does what the test says, turn by turn."""

    model = "scripted"

    def __init__(self, *turns: BaseException | str) -> None:
        self.turns = list(turns)
        self.seen: list[list[Message]] = []
        self.num_closed = 0

    def chat(self, messages: Sequence[Message], sampling: Mapping[str, Any]) -> Generator[Piece, None, None]:
        self.seen.append([dict(message) for message in messages])
        turn = self.turns.pop(0)
        try:
            if isinstance(turn, RequestError):
                raise turn
            yield Piece(text="part")
            if isinstance(turn, BaseException):
                raise turn
            yield Piece(text=turn)
        finally:
            self.num_closed += 1

    complete: Any = None

    def close(self) -> None: ...


def test_a_refused_turn_is_forgotten_and_an_interrupted_one_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    talker = Scripted(RequestError("too long"), KeyboardInterrupt(), " two")
    out = io.StringIO()

    def lines() -> Iterator[str]:
        yield from ["x" * 10, "one", "two"]

    conversation = Conversation(talker, {}, None, out)
    conversation.run(lines())
    assert capsys.readouterr().err == "refused: too long\n"
    assert out.getvalue() == "part [interrupted]\npart two\n"
    assert talker.seen[2] == [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "part"},
        {"role": "user", "content": "two"},
    ]
    assert talker.num_closed == 3


def test_the_last_turn_can_be_answered_anew(capsys: pytest.CaptureFixture[str]) -> None:
    talker = Scripted(" one", " two", " three", RequestError("too long"))
    out = io.StringIO()
    conversation = Conversation(talker, {}, "be brief", out)
    conversation.run(iter(["/regenerate", "first", "second", "/regenerate", "/history", "/regenerate", "/history"]))
    assert out.getvalue() == "part one\npart two\npart three\n"
    assert talker.seen[2] == talker.seen[1]
    err = capsys.readouterr().err.splitlines()
    assert err[0] == "there is no turn to answer anew"
    assert err[1:7] == [
        *("system: be brief", "user: first", "assistant: part one"),
        *("user: second", "assistant: part three", "5 messages"),
    ]
    assert err[7:] == ["refused: too long", *err[1:4], "3 messages"]


def test_the_memory_behind_the_conversation(
    engine: EchoEngine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = asyncio.run(FakeService().memory())
    monkeypatch.setattr(engine, "memory", lambda: memory, raising=False)
    assert chat(["/memory"], monkeypatch) == 0
    assert "weights    15.0 MiB  model: packed weights" in capsys.readouterr().err


def test_a_prompt_from_a_file(engine: EchoEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "prompt"
    path.write_text("-", encoding="utf-8")
    assert main(["complete", "--file", str(path)]) == 0
    assert capsys.readouterr().out == "^-\n"
    assert main(["complete", "org/name", "--file", str(path)]) == 0
    assert engine.configs[-1].model == "org/name"  # type: ignore[attr-defined]
    assert main(["complete", "org/name", "a prompt", "--file", str(path)]) == 2
    path.write_bytes(b"ab\xff")
    assert main(["complete", "--file", str(path)]) == 1
    assert "is not UTF-8 text: byte 2 cannot be read" in capsys.readouterr().err


def test_the_model_of_the_environment_gives_way_to_the_one_that_is_typed(
    engine: EchoEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZIGGURAT_MODEL", "from/environment")
    assert main(["complete", "a prompt"]) == 0
    assert main(["complete", "org/name", "a prompt"]) == 0
    assert [config.model for config in engine.configs] == ["from/environment", "org/name"]  # type: ignore[attr-defined]


def test_a_key_without_a_server_is_a_mistake(engine: EchoEngine, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["complete", "a", "--api-key", "sk-1"]) == 2
    assert "--api-key is for the server of --url" in capsys.readouterr().err
    assert main(["complete", "a", "--url", "http://127.0.0.1:1", "--api-key", "a b"]) == 1
    assert "visible ASCII characters without spaces" in capsys.readouterr().err
