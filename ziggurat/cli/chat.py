# SPDX-License-Identifier: Apache-2.0
"""``ziggurat chat [MODEL]``: a conversation in the terminal, with an engine in this process or with a running server."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

from ziggurat.cli.flags import Parser, add_flags, build, flags_of
from ziggurat.cli.interrupt import raise_interrupts
from ziggurat.cli.memory_table import memory_table
from ziggurat.cli.model_argument import add_model, given_model
from ziggurat.cli.output import write_piece
from ziggurat.cli.talk import Message, Talker, add_talk_flags, open_talker, sampling_of
from ziggurat.engine.config import option
from ziggurat.errors import RequestError

_HELP = """/system TEXT  set the system prompt and start again
/history      show the conversation
/regenerate   answer the last turn anew
/undo         forget the last turn
/reset        forget the conversation
/memory       show who owns which bytes
/help         this list
/exit         leave (so does the end of input); Ctrl-C ends an answer"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatOptions:
    """How the conversation begins."""

    system: str | None = option(None, "system prompt", group="conversation")


def parser() -> Parser:
    """Its flags."""
    parser = Parser("ziggurat chat", "Talk to a model. A line is a turn; /help lists the commands.")
    add_model(parser)
    add_flags(parser, flags_of(ChatOptions))
    add_talk_flags(parser)
    return parser


def run(argv: Sequence[str]) -> int:
    """Talk until the end of input.

    Raises:
        UserError: a setting, the model or the server.
    """
    namespace = parser().parse(argv)
    options, sampling = build(ChatOptions, namespace), sampling_of(namespace)
    with contextlib.closing(open_talker(namespace, given_model(namespace))) as talker:
        print(f"{talker.model}; /help lists the commands", file=sys.stderr)
        with raise_interrupts():
            Conversation(talker, sampling, options.system, sys.stdout).run(_lines(sys.stdin))
    return 0


def _lines(source: TextIO) -> Iterator[str]:
    """Turns of the user; on a terminal with a prompt and line editing."""
    if not source.isatty():
        yield from (line.rstrip("\n") for line in source)
        return
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (gives input() line editing and history)
    while True:
        try:
            yield input("> ")
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            # Often meant for an answer that has just ended.
            print("\n/exit or Ctrl-D leaves")


class Conversation:
    """The turns so far. Cached prefixes make each further turn cost its own tokens only.

    Args:
        out: gets the answers as they come.
    """

    def __init__(self, talker: Talker, sampling: Mapping[str, Any], system: str | None, out: TextIO) -> None:
        self._talker, self._sampling, self._out = talker, sampling, out
        self._start: list[Message] = [] if system is None else [{"role": "system", "content": system}]
        self.messages: list[Message] = list(self._start)
        self._commands: dict[str, Callable[[str], None]] = {
            "/system": self._set_system,
            "/history": lambda _: self._show_history(),
            "/regenerate": lambda _: self._regenerate(),
            "/undo": lambda _: self._undo(),
            "/reset": lambda _: self._reset(),
            "/memory": lambda _: self._say(memory_table(self._talker.memory())),
            "/help": lambda _: self._say(_HELP),
        }

    def run(self, lines: Iterator[str]) -> None:
        """Take turns until the lines end or one says ``/exit``."""
        for line in lines:
            word, _, rest = line.strip().partition(" ")
            if word in ("/exit", "/quit"):
                return
            if word.startswith("/"):
                self._commands.get(word, self._unknown)(rest or word)
            elif word:
                self._turn(line)

    def _turn(self, text: str) -> None:
        self.messages.append({"role": "user", "content": text})
        answer: list[str] = []
        try:
            # Closed when interrupted, so that the request ends before the next turn.
            with contextlib.closing(self._talker.chat(self.messages, self._sampling)) as pieces:
                for piece in pieces:
                    answer.append(piece.text)
                    write_piece(piece.text, self._out)
        except KeyboardInterrupt:
            self._out.write(" [interrupted]")
        except RequestError as error:
            # One turn was refused (too long, say); the conversation goes on without it.
            self._undo()
            self._say(f"refused: {error}")
            return
        self._out.write("\n")
        self._out.flush()
        self.messages.append({"role": "assistant", "content": "".join(answer)})

    def _regenerate(self) -> None:
        """The last turn again, as if it had not been answered; with a fixed seed the answer is the same."""
        turns = [message for message in self.messages[len(self._start) :] if message["role"] == "user"]
        if not turns:
            self._say("there is no turn to answer anew")
            return
        self._undo()
        self._turn(turns[-1]["content"])

    def _show_history(self) -> None:
        for message in self.messages:
            self._say(f"{message['role']}: {message['content']}")
        self._say(f"{len(self.messages)} messages")

    def _set_system(self, text: str) -> None:
        self._start = [{"role": "system", "content": text}]
        self._reset()

    def _reset(self) -> None:
        self.messages = list(self._start)
        self._say("a new conversation")

    def _undo(self) -> None:
        while len(self.messages) > len(self._start) and self.messages.pop()["role"] != "user":
            pass

    def _unknown(self, word: str) -> None:
        self._say(f"unknown command {word!r}; /help lists them")

    def _say(self, text: str) -> None:
        print(text, file=sys.stderr)
