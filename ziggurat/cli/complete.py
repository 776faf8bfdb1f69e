# SPDX-License-Identifier: Apache-2.0
"""``ziggurat complete [MODEL] PROMPT``: continue a text."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ziggurat.cli.flags import Parser, UsageError, add_flags, build, flags_of
from ziggurat.cli.model_argument import add_model_flag
from ziggurat.cli.output import add_output_flags, emit, write_piece
from ziggurat.cli.sources import FLAG, source_of
from ziggurat.cli.talk import Piece, add_talk_flags, open_talker, sampling_of
from ziggurat.cli.texts import read_text
from ziggurat.engine.config import option


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptOptions:
    """Where the prompt is, if not on the command line."""

    file: Path | None = option(None, "read the prompt from this file", group="prompt")


class _Parser(Parser):
    def typed_model(self, namespace: argparse.Namespace) -> str | None:
        """The word before the prompt, or the only one if the prompt is in a file."""
        words = namespace.words
        has_model = len(words) == 2 or (len(words) == 1 and hasattr(namespace, "file"))
        return str(words[0]) if has_model else None


def parser() -> Parser:
    """Its flags."""
    parser = _Parser("ziggurat complete", "Continue a text; the text goes to standard output as it is generated.")
    parser.add_argument(
        "words",
        metavar="[MODEL] PROMPT",
        nargs="*",
        help="the prompt, with the model before it; - reads the prompt from standard input; after -- it may begin with a dash",
    )
    add_model_flag(parser)
    add_flags(parser, flags_of(PromptOptions))
    add_talk_flags(parser)
    add_output_flags(parser)
    return parser


def run(argv: Sequence[str]) -> int:
    """Generate and print.

    Raises:
        UsageError: no prompt, or too many words.
        UserError: a setting, the model, the request or the server.
    """
    namespace = parser().parse(argv)
    model, prompt = _model_and_prompt(namespace)
    sampling = sampling_of(namespace)
    with (
        contextlib.closing(open_talker(namespace, model)) as talker,
        contextlib.closing(talker.complete(prompt, sampling)) as pieces,
    ):
        if getattr(namespace, "format", "text") == "text" and not hasattr(namespace, "output"):
            _print_as_it_comes(pieces)
            return 0
        result = _collect(talker.model, pieces)
    emit(namespace, result, lambda: str(result["text"]))
    return 0


def _model_and_prompt(namespace: argparse.Namespace) -> tuple[str | None, str]:
    words: list[str] = namespace.words
    file = build(PromptOptions, namespace).file
    if file is not None:
        words = [*words, read_text(file)]
    flag: str | None = getattr(namespace, "model", None)
    is_flag = source_of(namespace, "model") == FLAG
    if not words:
        raise UsageError(
            "a prompt is needed: ziggurat complete [MODEL] PROMPT, --file PATH, or - to read it from standard input"
        )
    if len(words) > 2 or (len(words) == 2 and is_flag):
        raise UsageError(f"one prompt is taken, {len(words)} words were given; put the prompt in quotes")
    model = words[0] if len(words) == 2 else flag
    return model, sys.stdin.read() if words[-1] == "-" and file is None else words[-1]


def _print_as_it_comes(pieces: Iterator[Piece]) -> None:
    for piece in pieces:
        write_piece(piece.text, sys.stdout)
    print()


def _collect(model: str, pieces: Iterator[Piece]) -> dict[str, Any]:
    texts, last = [], Piece(text="")
    for piece in pieces:
        texts.append(piece.text)
        last = piece
    return {
        "model": model,
        "text": "".join(texts),
        "finish_reason": last.finish_reason,
        "num_prompt_tokens": last.num_prompt_tokens,
        "num_cached_tokens": last.num_cached_tokens,
        "num_output_tokens": last.num_output_tokens,
    }
