# SPDX-License-Identifier: Apache-2.0
"""Entry point: finds the verb, loads its file, and turns what happens into an exit code.

Exit codes: 0 done; 1 the user can mend it (one line on standard error); 2 the command line is wrong; 3 our own fault (with a
traceback to report); 130 interrupted; 141 the reader of standard output went away.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import Protocol, cast

from ziggurat import __version__
from ziggurat.cli.flags import Parser, UsageError
from ziggurat.cli.interrupt import EXIT_INTERRUPTED, leave_at_once
from ziggurat.errors import StateError, UserError
from ziggurat.registry import nearest

EXIT_OK, EXIT_USER, EXIT_USAGE, EXIT_INTERNAL, EXIT_BROKEN_PIPE = 0, 1, 2, 3, 141

VERBS = {
    "serve": "serve a model over HTTP: OpenAI's API, a page, the memory map",
    "chat": "talk to a model in the terminal",
    "complete": "continue a text",
    "embed": "turn texts into vectors",
    "batch": "run a file of requests offline; resumable",
    "ps": "show what a running server serves, to whom, and who holds which memory",
    "plan": "say whether a model fits a budget, and what fits",
    "show": "explain a model: architecture, bytes, tokenizer; why it is refused if it is",
    "export": "write a model as GGUF, for llama.cpp and its relatives",
    "quantize": "write a model in 8 or 4 bits, and say what that did to its weights",
    "train": "train a model by a recipe, resumable",
    "bench": "measure latency, throughput, serving, or the highest rate that meets a target",
    "trace": "look at traces of requests, convert and sample them, size a prefix cache by them",
    "recall": "long-term memory in plain text: remember, find again, forget without a trace",
    "simulate": "the server's own scheduler on machines that are not there",
    "hardware": "devices and links by name; cost models fitted to measured files",
    "systems": "list the systems of the literature and where each stands",
    "reproduce": "re-run the claims of one system",
    "env": "describe this machine and this installation, for a report",
}


class Verb(Protocol):
    """What the file of a verb offers."""

    def parser(self) -> Parser:
        """Its flags; loads no torch."""
        ...

    def run(self, argv: Sequence[str]) -> int:
        """Do it; returns the exit code."""
        ...


def load(verb: str) -> Verb:
    """The module of a verb."""
    return cast(Verb, import_module(f"ziggurat.cli.{verb}"))


def usage() -> str:
    """What ``ziggurat --help`` prints."""
    width = max(len(name) for name in VERBS)
    verbs = "\n".join(f"  {name:<{width}}  {summary}" for name, summary in VERBS.items())
    return (
        f"usage: ziggurat VERB [ARGUMENTS]\n\nA memory operating system for large language models.\n\nverbs:\n{verbs}\n\n"
        "`ziggurat VERB --help` lists the flags of a verb; `ziggurat --version` prints the version.\n"
        "Exit codes: 0 done, 1 error you can mend, 2 wrong command line, 3 internal error, 130 interrupted."
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code. Nothing but ``--help`` and ``--show-config`` exits by itself."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        with leave_at_once():
            code = dispatch(words)
        sys.stdout.flush()
    except UsageError as error:
        return _fail(str(error), EXIT_USAGE)
    except (UserError, StateError) as error:
        return _fail(str(error), EXIT_USER)
    except KeyboardInterrupt:
        return _fail("interrupted", EXIT_INTERRUPTED)
    except BrokenPipeError:
        # Python would complain once more when it flushes standard output at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except Exception as error:  # noqa: BLE001  (the last line of defence: everything else is our fault and is reported as such)
        traceback.print_exc()
        return _fail(f"internal error, please report it with the lines above: {error!r}", EXIT_INTERNAL)
    return code


def dispatch(words: Sequence[str]) -> int:
    """Find the verb and run it.

    Raises:
        UsageError: there is no such verb.
    """
    if not words:
        print(usage(), file=sys.stderr)
        return EXIT_USAGE
    verb, rest = words[0], words[1:]
    if verb in ("-h", "--help", "help"):
        print(usage())
        return EXIT_OK
    if verb in ("-V", "--version", "version"):
        print(f"ziggurat {__version__}")
        return EXIT_OK
    if verb not in VERBS:
        kind = "flag" if verb.startswith("-") else "verb"
        raise UsageError(f"unknown {kind} {verb!r}{nearest(verb, list(VERBS)) or '.'} See `ziggurat --help`")
    return load(verb).run(rest)


def _fail(message: str, code: int) -> int:
    print(f"ziggurat: {' '.join(message.split())}", file=sys.stderr)
    return code
