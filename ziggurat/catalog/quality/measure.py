# SPDX-License-Identifier: Apache-2.0
"""One model in several number formats through the engine that serves it: text scored, retrieval tasks answered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ziggurat.catalog.quality.figures import TokenScores, agreement, paired_difference, task_figures
from ziggurat.errors import ConfigError
from ziggurat.registry import nearest
from ziggurat.scheduling.sampling import SamplingParams
from ziggurat.workload import prose
from ziggurat.workload.tasks.item import EncodedItem, single_token_words
from ziggurat.workload.tasks.retrieval import TASKS

if TYPE_CHECKING:
    from ziggurat.engine.llm import LLM
    from ziggurat.engine.tokenizer import Tokenizer

NUM_TOP = 20
MIN_WORDS = 128
_ITEMS_AT_ONCE = 64


class Progress(Protocol):
    """Told how far something is; `ziggurat.cli.progress.show_steps` is one."""

    def __call__(self, num_done: int, num_steps: int, what: str) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """Number formats of one run, by the names of the flags: ``WEIGHTS/KV``."""

    weights: str
    kv: str = "auto"

    @property
    def name(self) -> str:
        """As it is written."""
        return f"{self.weights}/{self.kv}"

    @property
    def settings(self) -> dict[str, Any]:
        """For an engine."""
        if self.weights in ("auto", "float32", "bfloat16", "float16"):
            return {"dtype": self.weights, "quantization": "none", "kv_cache_dtype": self.kv}
        return {"quantization": self.weights, "kv_cache_dtype": self.kv}


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityWork:
    """What every variant does.

    Attributes:
        text: what is scored; empty scores nothing.
        num_tokens: of the text, from its beginning; 0 takes all.
        window_tokens: context of one pass; the first half of every window but the first was scored by the one before.
        tasks: names of retrieval tasks, at each of ``lengths`` with ``items`` held-out items.
    """

    text: str = ""
    num_tokens: int = 0
    window_tokens: int = 512
    tasks: tuple[str, ...] = ()
    lengths: tuple[int, ...] = (512,)
    items: int = 0


@dataclass(slots=True)
class Outcome:
    """One variant's scores and answers: per (task, length) whether each item was right."""

    facts: dict[str, Any]
    scores: TokenScores | None
    answers: dict[tuple[str, int], list[bool]]


def run_variant(llm: LLM, work: QualityWork, progress: Progress) -> Outcome:
    """Score the text and answer the tasks.

    Raises:
        ConfigError: the text is too short, the model has no tokenizer, or its vocabulary lacks the words of the tasks.
    """
    if llm.engine.tokenizer is None:
        raise ConfigError(f"the model {llm.engine.model.name!r} has no tokenizer: there is no text to score")
    plan, model = llm.engine.fit.plan, llm.engine.model
    facts = {
        "weight_format": model.weight_format,
        "kv_format": model.kv_format,
        "weight_bytes": plan.weight_bytes,
        "kv_bytes_per_token": plan.kv_bytes_per_token(),
    }
    scores = score_text(llm, llm.engine.tokenizer, work, progress) if work.text else None
    answers = {}
    for task in work.tasks:
        for length in work.lengths:
            items = task_items(llm.engine.tokenizer, task, length, work.items, model.eos_ids)
            answers[task, length] = right_answers(llm, items, partial(progress, num_steps=work.items, what=task))
    return Outcome(facts, scores, answers)


def score_text(llm: LLM, tokenizer: Tokenizer, work: QualityWork, progress: Progress) -> TokenScores:
    """Teacher-forced scores of a text in windows that overlap by half, each token scored once and with at least half a window before it,
    but for the first window's. Every window begins as the tokenizer begins a text.

    Raises:
        ConfigError: less than two tokens.
    """
    begin, ids = tokenizer.encode(""), tokenizer.encode(work.text, add_special_tokens=False)
    ids = ids[: work.num_tokens or None]
    if len(ids) < 2:
        raise ConfigError(f"the text has {len(ids)} tokens; at least 2 are needed")
    window = min(work.window_tokens, llm.engine.model.max_model_len) - len(begin)
    params = SamplingParams(prompt_logprobs=NUM_TOP, max_tokens=0)
    step = max(1, window // 2)
    starts = [0, *range(step, max(len(ids) - window + step, step), step)]
    parts: list[dict[int, float]] = []
    tokens: list[int] = []
    for number, start in enumerate(starts):
        piece = ids[start : start + window]
        first_new = 0 if start == 0 else window - step
        if first_new >= len(piece):
            break
        (output,) = llm.generate([[*begin, *piece]], params)
        assert output.prompt_logprobs is not None
        entries = output.prompt_logprobs[len(begin) :]
        for token_id, entry in list(zip(piece, entries, strict=True))[first_new:]:
            if entry is not None:  # without a token that begins a text, nothing predicts the first
                tokens.append(token_id)
                parts.append(entry)
        progress(number + 1, len(starts), "windows of text")
    return _scores(tokens, parts)


def _scores(tokens: Sequence[int], entries: Sequence[dict[int, float]]) -> TokenScores:
    top = [sorted(entry.items(), key=lambda pair: (-pair[1], pair[0]))[:NUM_TOP] for entry in entries]
    return TokenScores(
        logprobs=np.array([entry[token] for token, entry in zip(tokens, entries, strict=True)], dtype=np.float64),
        top_ids=np.array([[token for token, _ in row] for row in top], dtype=np.int64),
        top_logprobs=np.array([[value for _, value in row] for row in top], dtype=np.float64),
    )


def task_items(
    tokenizer: Tokenizer, task: str, length_tokens: int, num_items: int, eos_ids: Sequence[int] = ()
) -> list[EncodedItem]:
    """Held-out items with one question each, those that training evaluates by.

    Args:
        eos_ids: the first begins a text if the tokenizer begins it with nothing.

    Raises:
        ConfigError: the vocabulary has too few of the words as single tokens.
    """
    import tokenizers

    from ziggurat.training.evaluate import EVALUATION_SEED, make_items

    backend = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    num_words = len(single_token_words(backend.get_vocab(), prose.all_words()))
    if num_words < MIN_WORDS:
        raise ConfigError(
            f"the vocabulary has {num_words} of the tasks' words as single tokens, and {MIN_WORDS} are needed: leave the tasks out "
            "(--items 0)"
        )
    begin = (tokenizer.encode("") or list(eos_ids) or [0])[0]
    return list(make_items(backend, task, length_tokens, num_items, EVALUATION_SEED, begin=begin))


def right_answers(llm: LLM, items: Sequence[EncodedItem], progress: Callable[[int], None]) -> list[bool]:
    """For each item, whether greedy decoding gives every token of its answer."""
    right: list[bool] = []
    for start in range(0, len(items), _ITEMS_AT_ONCE):
        some = items[start : start + _ITEMS_AT_ONCE]
        params = [SamplingParams(temperature=0, max_tokens=len(item.parts[0][1]), ignore_eos=True) for item in some]
        outputs = llm.generate([item.prompt() for item in some], params)
        right += [
            tuple(output.outputs[0].token_ids) == item.parts[0][1] for item, output in zip(some, outputs, strict=True)
        ]
        progress(len(right))
    return right


def check_tasks(names: Sequence[str]) -> None:
    """Refuse a task that does not exist.

    Raises:
        ConfigError: names the nearest.
    """
    for name in names:
        if name not in TASKS:
            raise ConfigError(
                f"unknown task {name!r}{nearest(name, TASKS.names()) or '.'} Known: {', '.join(TASKS.names())}"
            )


def row(variant: Variant, outcome: Outcome, reference: Outcome) -> dict[str, Any]:
    """One row of the result: the variant's own figures, and how it differs from the reference."""
    found: dict[str, Any] = {"variant": variant.name, **outcome.facts}
    if outcome.scores is not None and reference.scores is not None:
        found |= {
            "perplexity": outcome.scores.perplexity,
            "perplexity_ratio": outcome.scores.perplexity / reference.scores.perplexity,
            "num_scored_tokens": len(outcome.scores.logprobs),
            **agreement(reference.scores, outcome.scores),
        }
    found["tasks"] = [
        {
            "task": task,
            "length_tokens": length,
            **task_figures(right),
            **paired_difference(reference.answers[task, length], right),
        }
        for (task, length), right in outcome.answers.items()
    ]
    return found
