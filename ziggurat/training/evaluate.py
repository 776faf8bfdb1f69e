# SPDX-License-Identifier: Apache-2.0
"""Held-out evaluation through the interpreter: retrieval accuracy per task and length, and text loss.

An item counts as right if greedy decoding would produce every token of its answer. That is so exactly if, with the
answer appended, the largest logit before each of its tokens is that token; one forward pass per item decides it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

from ziggurat.training.config import MixtureEntry, StageConfig
from ziggurat.training.generated import BEGIN, PAD, build_sources, word_pool
from ziggurat.training.interpreter import ProgramModel
from ziggurat.training.sources import make_batch
from ziggurat.workload.tasks.item import EncodedItem, encode_item
from ziggurat.workload.tasks.retrieval import TASKS
from ziggurat.workload.tasks.scoring import Accuracy

EVALUATION_SEED = 900_001  # training draws from (recipe seed, step); no recipe uses a seed this large
_TOKENS_PER_PASS = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskResult:
    """Accuracy of one task at one length (tokens of context, question and answer together)."""

    task: str
    length_tokens: int
    accuracy: Accuracy

    def as_dict(self) -> dict[str, object]:
        """Plain data for a results file."""
        low, high = self.accuracy.wilson_bounds()
        return {
            "task": self.task,
            "length_tokens": self.length_tokens,
            "n": self.accuracy.num_items,
            "correct": self.accuracy.num_correct,
            "accuracy": round(self.accuracy.value, 5),
            "wilson_low": round(low, 5),
            "wilson_high": round(high, 5),
        }


def make_items(
    tokenizer: Tokenizer,
    task: str,
    length_tokens: int,
    num_items: int,
    seed: int,
    first_item: int = 0,
    begin: int = BEGIN,
) -> Iterable[EncodedItem]:
    """Held-out items `first_item` and on, with one question each; item i depends on (seed, task, length, i) only.

    Args:
        begin: the token that begins a text.
    """
    pool = word_pool(tokenizer, "held_out")
    number = TASKS.names().index(task)
    for index in range(first_item, first_item + num_items):
        rng = np.random.default_rng([seed, number, length_tokens, index])
        yield encode_item(TASKS.get(task)(rng, pool, length_tokens, 1), pool.encode, begin)


def evaluate_task(
    model: ProgramModel,
    tokenizer: Tokenizer,
    task: str,
    length_tokens: int,
    num_items: int,
    seed: int = EVALUATION_SEED,
    first_item: int = 0,
) -> TaskResult:
    """Accuracy over `num_items` held-out items (ConfigError for an unknown task)."""
    correct, pending = 0, []
    batch_size = max(1, _TOKENS_PER_PASS // length_tokens)
    for item in make_items(tokenizer, task, length_tokens, num_items, seed, first_item):
        pending.append(item)
        if len(pending) == batch_size:
            correct += sum(right_answers(model, pending))
            pending = []
    if pending:
        correct += sum(right_answers(model, pending))
    return TaskResult(
        task=task, length_tokens=length_tokens, accuracy=Accuracy(num_items=num_items, num_correct=correct)
    )


@torch.no_grad()
def right_answers(model: ProgramModel, items: Sequence[EncodedItem]) -> list[bool]:
    """For each item, whether greedy decoding gives all tokens of the first question's answer."""
    prompts = [item.prompt() for item in items]
    answers = [list(item.parts[0][1]) for item in items]
    length = max(len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True))
    ids = torch.full((len(items), length), PAD, dtype=torch.int64)
    rows, targets, owners = [], [], []
    for index, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        ids[index, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
        for offset, token in enumerate(answer):
            rows.append(index * length + len(prompt) - 1 + offset)
            targets.append(token)
            owners.append(index)
    predicted = model(ids, torch.tensor(rows)).argmax(-1).tolist()
    is_right = [True] * len(items)
    for owner, guess, token in zip(owners, predicted, targets, strict=True):
        is_right[owner] &= guess == token
    return is_right


@torch.no_grad()
def held_out_loss(
    model: ProgramModel,
    tokenizer: Tokenizer,
    texts: Sequence[str] = (),
    length_tokens: int = 256,
    num_sequences: int = 64,
) -> dict[str, float]:
    """Mean loss in nats per counted token on held-out prose and chats (and user text, if files are given)."""
    sources = build_sources(tokenizer, texts, "held_out")
    length = min(length_tokens, model.program.max_position)
    losses = {}
    for name in ("prose", "chat", *(["text"] if texts else [])):
        stage = StageConfig(
            name=name,
            lengths_tokens=(length,),
            tokens_per_step=length * num_sequences,
            max_tokens=1,
            learning_rate=0.0,
            mixture=(MixtureEntry(source=name, share=1.0),),
        )
        batch = make_batch(sources, stage, EVALUATION_SEED, 0)
        logits = model(torch.from_numpy(batch.ids), torch.from_numpy(batch.rows))
        losses[name] = float(F.cross_entropy(logits, torch.from_numpy(batch.targets)))
    return losses
