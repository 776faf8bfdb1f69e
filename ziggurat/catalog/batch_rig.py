# SPDX-License-Identifier: Apache-2.0
"""One job on one engine in two ways: planned as a whole, and as a stream with an LRU prefix cache; same weights, kernels and pool."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from ziggurat.scheduling.job import JobItem
from ziggurat.scheduling.outputs import Counters
from ziggurat.scheduling.planners import resolve
from ziggurat.scheduling.protocol import TokenBudget
from ziggurat.scheduling.sampling import SamplingParams

if TYPE_CHECKING:
    from ziggurat.engine.engine import Engine
    from ziggurat.engine.types import GenerateOutput, GenerateRequest

STEP_TOKENS = 256
MAX_NUM_SEQS = 192
BLOCK_SIZE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class JobShape:
    """A job of groups that share a beginning, in an order that mixes them.

    Attributes:
        degree: requests per group.
        shared_tokens, own_tokens, output_tokens: bounds of uniform lengths.
    """

    num_groups: int
    degree: int
    shared_tokens: tuple[int, int] = (200, 2000)
    own_tokens: tuple[int, int] = (16, 64)
    output_tokens: tuple[int, int] = (8, 64)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobPrompt:
    """One request: a prompt and the length of its text, which never ends early."""

    prompt_ids: tuple[int, ...]
    output_tokens: int


@dataclass(slots=True, kw_only=True)
class JobOutcome:
    """What one way of running cost.

    Attributes:
        computed_prompt_tokens: of the prompts, not found cached when they were admitted.
        peak_held_blocks: the most blocks that requests (and held beginnings) had at any step; what is merely cached does not count.
        planning_s: part of ``elapsed_s``.
    """

    prompt_tokens: int
    computed_prompt_tokens: int
    output_tokens: int
    elapsed_s: float
    planning_s: float
    peak_held_blocks: int
    texts: dict[int, tuple[int, ...]] = field(default_factory=dict)

    @property
    def saved_tokens(self) -> int:
        """Prompt tokens that were not computed."""
        return self.prompt_tokens - self.computed_prompt_tokens

    @property
    def tokens_per_s(self) -> float:
        """All tokens of the job, shared ones counted as often as they were asked for."""
        return (self.prompt_tokens + self.output_tokens) / self.elapsed_s


def make_job(shape: JobShape, vocab_size: int, seed: int) -> list[JobPrompt]:
    """The prompts of a job, shuffled."""
    rng = random.Random(seed)

    def tokens(bounds: tuple[int, int]) -> tuple[int, ...]:
        return tuple(rng.randrange(3, vocab_size) for _ in range(rng.randint(*bounds)))

    prompts = []
    for _ in range(shape.num_groups):
        shared = tokens(shape.shared_tokens)
        prompts += [
            JobPrompt(prompt_ids=shared + tokens(shape.own_tokens), output_tokens=rng.randint(*shape.output_tokens))
            for _ in range(shape.degree)
        ]
    rng.shuffle(prompts)
    return prompts


def working_set_tokens(prompts: Sequence[JobPrompt], saved_tokens: int) -> int:
    """Tokens of KV when every beginning is there once and every text is at its end."""
    return sum(len(each.prompt_ids) + each.output_tokens for each in prompts) - saved_tokens


class BatchRig:
    """One engine with a pool of a given size.

    Args:
        shape: a config.json; weights are random.
        pool_tokens: what the KV pool holds.
        settings: further fields of `EngineConfig`.
    """

    def __init__(self, shape: Mapping[str, Any], pool_tokens: int, **settings: Any) -> None:
        from ziggurat.engine.config import EngineConfig
        from ziggurat.engine.engine import Engine
        from ziggurat.engine.sizing import open_model, size

        self._exit = ExitStack()
        folder = self._exit.enter_context(TemporaryDirectory(prefix="ziggurat-batch-"))
        (Path(folder) / "config.json").write_text(json.dumps(dict(shape)), encoding="utf-8")

        def config(memory: int) -> EngineConfig:
            return EngineConfig(
                model=folder,
                load_format="dummy",
                memory=memory,
                block_size=BLOCK_SIZE,
                max_model_len=2560,
                max_num_seqs=MAX_NUM_SEQS,
                max_num_batched_tokens=STEP_TOKENS,
                max_queued_requests=100_000,
                **settings,
            )

        source = open_model(config(1 << 32))
        low, high = 0, 1 << 34
        while high - low > 1 << 18:  # the smallest budget whose pool is large enough, to a quarter of a mebibyte
            middle = (low + high) // 2
            is_enough = _pool_tokens(lambda memory: size(config(memory), source, memory), middle) >= pool_tokens
            low, high = (low, middle) if is_enough else (middle, high)
        self._engine: Engine = Engine.load(config(high))

    @property
    def counters(self) -> Counters:
        """Of the engine's core, since it was loaded."""
        return self._engine.core.counters

    @property
    def pool_blocks(self) -> int:
        """Blocks of the pool."""
        return self._engine.store.total_blocks()[0]

    @property
    def vocab_size(self) -> int:
        """Token ids are below it."""
        return self._engine.model.vocab_size

    def run_planned(self, prompts: Sequence[JobPrompt], *, max_num_seqs: int = MAX_NUM_SEQS) -> JobOutcome:
        """As `ziggurat batch` runs a job."""
        from ziggurat.engine.job import JobRun

        self._prepare("memory-centric", max_num_seqs)
        source = _Source(_requests(prompts, "job"))
        items = [
            JobItem(prompt_ids=each.prompt_ids, output_tokens=each.output_tokens, limit_tokens=each.output_tokens)
            for each in prompts
        ]
        started_s = time.perf_counter()
        run = JobRun(self._engine, items, source)
        peak = _Peak(self._engine)
        report = run.run(peak)
        return JobOutcome(
            prompt_tokens=report.prompt_tokens,
            computed_prompt_tokens=report.computed_prompt_tokens,
            output_tokens=report.output_tokens,
            elapsed_s=time.perf_counter() - started_s,
            planning_s=report.planning_s,
            peak_held_blocks=peak.blocks,
            texts={index: tuple(text) for index, text in source.texts.items()},
        )

    def run_stream(self, prompts: Sequence[JobPrompt], *, max_num_seqs: int) -> JobOutcome:
        """As they come: FCFS, chunked prefills beside all decodes, an LRU cache of prefixes, a cap on requests."""
        self._prepare("sarathi", max_num_seqs)
        engine, source = self._engine, _Source(_requests(prompts, "stream"))
        before = engine.core.counters.prefix_hit_tokens
        started_s = time.perf_counter()
        for request in source.requests:
            engine.add(request)
        peak = _Peak(engine)
        while engine.has_work:
            for output in engine.step():
                source.on_output(int(output.request_id.partition("-")[2]), output)
            peak()
        total = sum(len(each.prompt_ids) for each in prompts)
        return JobOutcome(
            prompt_tokens=total,
            computed_prompt_tokens=total - (engine.core.counters.prefix_hit_tokens - before),
            output_tokens=sum(len(text) for text in source.texts.values()),
            elapsed_s=time.perf_counter() - started_s,
            planning_s=0.0,
            peak_held_blocks=peak.blocks,
            texts={index: tuple(text) for index, text in source.texts.items()},
        )

    def run_conversations(self, words: Sequence[Sequence[tuple[int, ...]]], answer_tokens: int) -> JobOutcome:
        """Conversations, each with what is said in every turn: all of them take their first turn, then their second, ..; a turn's prompt is
        everything before it. Texts are numbered turn by turn. What an earlier run left is forgotten."""
        self._prepare("sarathi", MAX_NUM_SEQS)
        core = self._engine.core
        if core.swapper is not None:
            core.swapper.space.clear()
        before, started_s = core.counters.prefix_hit_tokens + core.counters.swapped_in_tokens, time.perf_counter()
        histories: list[tuple[int, ...]] = [() for _ in words]
        texts: dict[int, tuple[int, ...]] = {}
        num_prompt_tokens = 0
        for turn in range(len(words[0])):
            histories = [history + said[turn] for history, said in zip(histories, words, strict=True)]
            num_prompt_tokens += sum(map(len, histories))
            answers = self._answers(turn, histories, answer_tokens)
            histories = [history + answer for history, answer in zip(histories, answers, strict=True)]
            texts |= {turn * len(words) + index: answer for index, answer in enumerate(answers)}
        found = core.counters.prefix_hit_tokens + core.counters.swapped_in_tokens - before
        return JobOutcome(
            prompt_tokens=num_prompt_tokens,
            computed_prompt_tokens=num_prompt_tokens - found,
            output_tokens=sum(map(len, texts.values())),
            elapsed_s=time.perf_counter() - started_s,
            planning_s=0.0,
            peak_held_blocks=0,
            texts=texts,
        )

    def _answers(self, turn: int, histories: Sequence[tuple[int, ...]], answer_tokens: int) -> list[tuple[int, ...]]:
        prompts = [JobPrompt(prompt_ids=history, output_tokens=answer_tokens) for history in histories]
        source = _Source(_requests(prompts, f"turn{turn}"))
        for request in source.requests:
            self._engine.add(request)
        while self._engine.has_work:
            for output in self._engine.step():
                source.on_output(int(output.request_id.partition("-")[2]), output)
        return [tuple(source.texts[index]) for index in range(len(histories))]

    def close(self) -> None:
        """Give the engine's memory back."""
        self._engine.close()
        self._exit.close()

    def _prepare(self, planner: str, max_num_seqs: int) -> None:
        self._engine.store.drop_cache()
        self._engine.core.planner = resolve(planner)
        self._engine.core.budget = TokenBudget(max_num_batched_tokens=STEP_TOKENS, max_num_seqs=max_num_seqs)


class _Peak:
    """The most blocks held after any step."""

    def __init__(self, engine: Engine) -> None:
        self._store, self.blocks = engine.store, 0

    def __call__(self) -> None:
        self.blocks = max(self.blocks, self._store.stats()[0].used)


class _Source:
    """Requests by number, and the tokens that came for each."""

    def __init__(self, requests: Sequence[GenerateRequest]) -> None:
        self.requests = requests
        self.texts: dict[int, list[int]] = {}

    def request(self, index: int) -> GenerateRequest:
        return self.requests[index]

    def on_output(self, index: int, output: GenerateOutput) -> None:
        self.texts.setdefault(index, []).extend(token.token_id for token in output.tokens)

    def on_refused(self, index: int, error: Exception) -> None:
        raise error


def _requests(prompts: Sequence[JobPrompt], name: str) -> list[GenerateRequest]:
    from ziggurat.engine.types import GenerateRequest

    return [
        GenerateRequest(
            request_id=f"{name}-{index}",
            prompt_ids=each.prompt_ids,
            params=SamplingParams(temperature=0, max_tokens=each.output_tokens, ignore_eos=True),
        )
        for index, each in enumerate(prompts)
    ]


def _pool_tokens(sized: Any, memory: int) -> int:
    from ziggurat.errors import DoesNotFit

    try:
        return int(min(sized(memory).num_blocks)) * BLOCK_SIZE
    except DoesNotFit:
        return 0
