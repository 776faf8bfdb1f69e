# SPDX-License-Identifier: Apache-2.0
"""``ziggurat embed [MODEL]``: texts to vectors, as JSON lines in the order of the texts."""

from __future__ import annotations

import contextlib
import itertools
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from ziggurat.cli.engine_flags import engine_flags
from ziggurat.cli.flags import Parser, UsageError, add_flags, build, flags_of
from ziggurat.cli.interrupt import raise_interrupts
from ziggurat.cli.model_argument import add_model, model_of
from ziggurat.cli.texts import read_text
from ziggurat.engine.config import EngineConfig, option
from ziggurat.errors import ConfigError, RequestError

if TYPE_CHECKING:
    from ziggurat.engine.llm import LLM, EmbeddingRequestOutput

# Texts that are handed over together: enough to fill the batch, few enough that a long file flows.
BATCH = 64
NUM_SHOWN = 4
# Nobody asks by name here, the queue holds one batch, and nothing is drawn at random.
_NOT_HERE = ("served_model_name", "max_queued_requests", "seed")


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedOptions:
    """Which texts, and what is made of them."""

    text: tuple[str, ...] = option((), "a text; may be given several times", group="texts")
    file: Path | None = option(None, "file with one text per line (default: standard input)", group="texts")
    pooling: str = option("mean", "of all tokens, or the last one", choices=("mean", "last"), group="texts")
    normalize: bool = option(True, "scale vectors to length 1", group="texts")
    format: str = option(
        "json",
        "json: an object per line; text: the first numbers, for people",
        choices=("text", "json"),
        group="output",
    )
    output: Path | None = option(None, "write the result to this file instead of standard output", group="output")


def parser() -> Parser:
    """Its flags."""
    parser = Parser("ziggurat embed", "Turn texts into vectors: an object per text, in order, as JSON lines.")
    add_model(parser)
    add_flags(parser, flags_of(EmbedOptions))
    add_flags(parser, engine_flags(without=_NOT_HERE))
    return parser


def run(argv: Sequence[str]) -> int:
    """Embed every text.

    Raises:
        UsageError: texts from two places.
        UserError: a file, a setting, the model, or a text; what came before it is printed.
    """
    namespace = parser().parse(argv)
    options = build(EmbedOptions, namespace)
    config = build(EngineConfig, namespace, model=model_of(namespace))
    texts = read_texts(options, sys.stdin)
    with contextlib.ExitStack() as stack:
        out = stack.enter_context(_open(options.output)) if options.output is not None else sys.stdout
        llm = stack.enter_context(open_llm(config))
        stack.enter_context(raise_interrupts())
        for line in lines(llm, texts, options):
            print(line, file=out, flush=True)
    if options.output is not None:
        print(f"wrote {options.output}", file=sys.stderr)
    return 0


def open_llm(config: EngineConfig) -> LLM:
    """The model in this process; loads torch."""
    from ziggurat.engine.llm import LLM

    return LLM(**{field.name: getattr(config, field.name) for field in fields(EngineConfig)})


def read_texts(options: EmbedOptions, source: TextIO) -> Iterator[tuple[str, str]]:
    """(where, text) of every text; lines without text are left out.

    Raises:
        UsageError: texts were named in two ways.
        ConfigError: the file cannot be read.
    """
    if options.text and options.file is not None:
        raise UsageError("texts come from --text or from --file, not from both")
    if options.text:
        return ((f"text {number}", text) for number, text in enumerate(options.text, 1))
    found: Iterable[str] = source if options.file is None else read_text(options.file).splitlines()
    stripped = ((f"line {number}", line.rstrip("\r\n")) for number, line in enumerate(found, 1))
    return ((where, text) for where, text in stripped if text.strip())


def lines(llm: LLM, texts: Iterator[tuple[str, str]], options: EmbedOptions) -> Iterator[str]:
    """The result, line by line, batch by batch.

    Raises:
        RequestError: a text is too long; names its place.
    """
    start = 0
    while batch := list(itertools.islice(texts, BATCH)):
        for index, result in enumerate(_embed(llm, batch, options), start):
            yield as_text(index, result) if options.format == "text" else json.dumps(as_json(index, result))
        start += len(batch)


def _embed(llm: LLM, batch: Sequence[tuple[str, str]], options: EmbedOptions) -> Iterator[EmbeddingRequestOutput]:
    pooling: Any = options.pooling
    try:
        yield from llm.embed([text for _, text in batch], pooling=pooling, normalize=options.normalize)
        return
    except RequestError:
        # One text of the batch was refused, and nothing of it ran. One by one, the place is known and what comes before is done.
        pass
    for where, text in batch:
        try:
            yield from llm.embed([text], pooling=pooling, normalize=options.normalize)
        except RequestError as error:
            raise RequestError(f"{where}: {error}", param="text") from error


def as_json(index: int, result: EmbeddingRequestOutput) -> dict[str, Any]:
    """``index``, ``text``, ``num_tokens``, ``num_cached_tokens`` and the ``embedding``."""
    return {
        "index": index,
        "text": result.prompt,
        "num_tokens": len(result.prompt_token_ids),
        "num_cached_tokens": result.num_cached_tokens,
        "embedding": result.outputs.embedding,
    }


def as_text(index: int, result: EmbeddingRequestOutput) -> str:
    """The first numbers, and how many there are."""
    vector = result.outputs.embedding
    shown = " ".join(f"{value:+.4f}" for value in vector[:NUM_SHOWN])
    return (
        f"{index}  {len(result.prompt_token_ids)} tokens  {shown} .. ({len(vector)} numbers)  {str(result.prompt)[:40]}"
    )


def _open(path: Path) -> TextIO:
    try:
        return path.open("w", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error
