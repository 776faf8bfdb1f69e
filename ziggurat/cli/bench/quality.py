# SPDX-License-Identifier: Apache-2.0
"""``ziggurat bench quality``: what number formats of weights and KV cost: perplexity, agreement, right answers."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ziggurat.catalog.quality.measure import Outcome, QualityWork, Variant, check_tasks, row, run_variant
from ziggurat.cli.bench.report import machine_facts
from ziggurat.cli.flags import Parser, UsageError, add_flags, build, flags_of
from ziggurat.cli.interrupt import raise_interrupts
from ziggurat.cli.model_argument import add_model, model_of
from ziggurat.cli.output import add_output_flags, emit, table
from ziggurat.cli.progress import show_steps
from ziggurat.cli.texts import read_text
from ziggurat.engine.config import EngineConfig, option
from ziggurat.errors import ConfigError

if TYPE_CHECKING:
    from ziggurat.engine.llm import LLM

DEFAULT_TASKS = ("key_value", "needle")


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityOptions:
    """What is compared, and by what."""

    text: Path | None = option(None, "text to score: perplexity and agreement", group="quality")
    num_tokens: int = option(20_000, "tokens of the text, from its beginning; 0 takes all", group="quality")
    window_tokens: int = option(512, "context of one pass; windows overlap by half", group="quality")
    variant: tuple[str, ...] = option(
        (),
        "WEIGHTS or WEIGHTS/KV to compare, e.g. q4_0/bf16; may be given several times (default: all)",
        group="quality",
    )
    reference: str = option("float32/fp32", "what every variant is compared with", group="quality")
    task: tuple[str, ...] = option(
        (), "retrieval task; may be given several times (default: key_value, needle)", group="quality"
    )
    length: tuple[int, ...] = option(
        (), "tokens of a task's item; may be given several times (default: 512)", group="quality"
    )
    items: int = option(200, "items per task and length; 0 leaves tasks out", group="quality")
    memory: str = option("2GiB", "bytes that a variant may add", group="quality")
    threads: int | None = option(None, "compute threads (default: the cores this process may use)", group="quality")


def parser() -> Parser:
    """Its flags."""
    parser = Parser(
        "ziggurat bench quality",
        "Score a text and answer retrieval tasks in several number formats of weights and KV, through the engine that serves them, "
        "against the same work in a reference format.",
    )
    add_model(parser)
    add_flags(parser, flags_of(QualityOptions))
    add_output_flags(parser)
    return parser


def run(argv: Sequence[str]) -> int:
    """Measure every variant and print.

    Raises:
        UsageError: nothing to do.
        UserError: a format, a task, the text or the model.
    """
    namespace = parser().parse(argv)
    options = build(QualityOptions, namespace)
    work = work_of(options)
    reference, variants = variant_of(options.reference), variants_of(options)
    with raise_interrupts():
        found = {}
        for variant in dict.fromkeys((reference, *variants)):
            with open_llm(namespace, options, variant) as llm:
                found[variant] = run_variant(llm, work, show_steps)
            show_steps(0, 0, "")
    result = result_of(found, reference, work, options) | {"model": model_of(namespace)}
    result |= machine_facts(" ".join(["ziggurat bench quality", *argv]))
    emit(namespace, result, lambda: as_text(result))
    return 0


def work_of(options: QualityOptions) -> QualityWork:
    """What every variant does.

    Raises:
        UsageError: nothing.
        ConfigError: an unknown task, a number that makes no sense, a text that cannot be read.
    """
    has_tasks = options.items > 0
    if options.text is None and not has_tasks:
        raise UsageError("nothing to measure: give --text FILE, or --items above 0")
    for name, low in (("num_tokens", 0), ("window_tokens", 4), ("items", 0)):
        if getattr(options, name) < low:
            raise ConfigError(f"{name} must be at least {low}, got {getattr(options, name)}")
    text = "" if options.text is None else read_text(options.text)
    if options.text is not None and not text.strip():
        raise ConfigError(f"{options.text}: the text is empty")
    tasks = (options.task or DEFAULT_TASKS) if has_tasks else ()
    check_tasks(tasks)
    return QualityWork(
        text=text,
        num_tokens=options.num_tokens,
        window_tokens=options.window_tokens,
        tasks=tasks,
        lengths=options.length or (512,),
        items=options.items,
    )


def variant_of(text: str) -> Variant:
    """``WEIGHTS`` or ``WEIGHTS/KV``. Names are checked by the engine's configuration.

    Raises:
        ConfigError: unknown format.
    """
    weights, _, kv = text.partition("/")
    variant = Variant(weights=weights, kv=kv or "auto")
    EngineConfig(**variant.settings)
    return variant


def variants_of(options: QualityOptions) -> list[Variant]:
    """Those asked for; by default every format of weights with its own KV, and every format of KV under bf16 weights."""
    if options.variant:
        return [variant_of(text) for text in options.variant]
    choices = {
        name: EngineConfig.__dataclass_fields__[name].metadata["choices"] for name in ("quantization", "kv_cache_dtype")
    }
    quantized = [name for name in choices["quantization"] if name not in ("auto", "none")]
    kv = [name for name in choices["kv_cache_dtype"] if name not in ("auto", "bf16")]
    return [
        Variant(weights="bfloat16"),
        *(Variant(weights="bfloat16", kv=name) for name in kv),
        *(Variant(weights=name) for name in quantized),
    ]


def open_llm(namespace: argparse.Namespace, options: QualityOptions, variant: Variant) -> LLM:
    """The model in a variant's formats."""
    from ziggurat.engine.llm import LLM

    return LLM(model_of(namespace), memory=options.memory, threads=options.threads, **variant.settings)


def result_of(
    found: dict[Variant, Outcome], reference: Variant, work: QualityWork, options: QualityOptions
) -> dict[str, Any]:
    """The result, the reference's row first."""
    return {
        "kind": "measured",
        "text": None
        if options.text is None
        else {
            "file": str(options.text),
            "window_tokens": work.window_tokens,
            "overlap_tokens": work.window_tokens // 2,
        },
        "reference": reference.name,
        "rows": [row(variant, outcome, found[reference]) for variant, outcome in found.items()],
    }


def as_text(result: dict[str, Any]) -> str:
    """A row per variant, then a row per variant and task."""
    head = ["variant", "weights MiB", "KV B/token", "perplexity", "x reference", "top-1", "KL >="]
    rows = [head]
    for each in result["rows"]:
        has_text = "perplexity" in each
        text = (
            [
                f"{each['perplexity']:.4f}",
                f"{each['perplexity_ratio']:.4f}",
                f"{each['top1_agreement']:.4f}",
                f"{each['mean_kl_lower_bound']:.2e}",
            ]
            if has_text
            else ["-"] * 4
        )
        rows.append([each["variant"], f"{each['weight_bytes'] / 2**20:.1f}", str(each["kv_bytes_per_token"]), *text])
    tasks = [["variant", "task", "tokens", "n", "right", "95 %", "difference", "95 %"]]
    tasks += [_task_row(each["variant"], task) for each in result["rows"] for task in each["tasks"]]
    shown = table(rows, right=range(1, 7))
    return shown if len(tasks) == 1 else f"{shown}\n\n{table(tasks, right=range(2, 8))}"


def _task_row(variant: str, task: dict[str, Any]) -> list[str]:
    return [
        variant,
        task["task"],
        str(task["length_tokens"]),
        str(task["n"]),
        f"{task['accuracy']:.4f}",
        f"{task['wilson_low']:.3f}-{task['wilson_high']:.3f}",
        f"{task['difference']:+.4f}",
        f"{task['difference_low']:+.3f} {task['difference_high']:+.3f}",
    ]
