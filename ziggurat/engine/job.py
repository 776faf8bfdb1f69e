# SPDX-License-Identifier: Apache-2.0
"""A job whose requests are all known, run on an engine that does nothing else: what `ziggurat.scheduling.job` decides is done here."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ziggurat.engine.engine import Engine
from ziggurat.engine.types import AnyRequest, GenerateOutput
from ziggurat.errors import RequestError
from ziggurat.scheduling.job import JobFeed, JobItem, JobPlan, plan_job

PLANNER = "memory-centric"
"""The planner for jobs. Others work too."""
# Requests that wait in the engine's own queue: enough for planners to fill a step, and few, so that the feed decides the order.
_LOOKAHEAD = 4


class JobSource(Protocol):
    """Where requests come from and outputs go. Numbers are places in the job."""

    def request(self, index: int) -> AnyRequest:
        """The request, made when its turn comes.

        Raises:
            RequestError: it cannot be run after all.
        """
        ...

    def on_output(self, index: int, output: GenerateOutput) -> None:
        """New tokens or the end of one continuation."""
        ...

    def on_refused(self, index: int, error: RequestError) -> None:
        """It was not taken; the job goes on."""
        ...


@dataclass(slots=True, kw_only=True)
class JobReport:
    """What sharing brought.

    Attributes:
        plan: groups and the tokens that they save.
        planning_s: time to make it.
        computed_prompt_tokens: prompt tokens that were not found cached, when requests were admitted.
        prompt_tokens: of all requests that ran.
        output_tokens: generated.
        peak_blocks: the most blocks of the first KV group that were in use or kept at any step.
    """

    plan: JobPlan
    planning_s: float
    prompt_tokens: int = 0
    computed_prompt_tokens: int = 0
    output_tokens: int = 0
    peak_blocks: int = 0
    elapsed_s: float = 0.0


@dataclass(slots=True)
class _Running:
    """A request in the engine. ``texts``: the tokens of each continuation, which its blocks are filed under."""

    index: int
    num_open: int
    request: AnyRequest
    has_begun: bool = False
    texts: dict[int, list[int]] = field(default_factory=dict)


def token_array(token_ids: Sequence[int]) -> Sequence[int]:
    """Four bytes per token instead of a Python integer each: a job holds all its prompts."""
    return array("I", token_ids)


class JobRun:
    """One job.

    Args:
        items: every request of the job, done ones included, so that a plan does not depend on where an earlier run was stopped.
        is_done: numbers of items that need not run.
    """

    def __init__(
        self, engine: Engine, items: Sequence[JobItem], source: JobSource, is_done: frozenset[int] = frozenset()
    ) -> None:
        started_s = time.perf_counter()
        self._engine, self._items, self._source = engine, items, source
        store = engine.store
        plan = plan_job(items, store.block_size)
        total_blocks = min(store.total_blocks())
        longest = [_longest_tokens(item, engine.model.max_model_len) for item in items]
        peaks = [max(store.peak_blocks(num_tokens)) for num_tokens in longest]
        self._feed = JobFeed(
            plan,
            peak_blocks=[min(blocks, total_blocks) for blocks in peaks],
            total_blocks=total_blocks,
            block_size=store.block_size,
            is_done=is_done,
        )
        self._running: dict[str, _Running] = {}
        self._held: dict[int, AnyRequest] = {}
        self.report = JobReport(plan=plan, planning_s=time.perf_counter() - started_s)

    def run(self, on_step: Callable[[], None] | None = None) -> JobReport:
        """To the end. Whatever happens, nothing of the job stays in the engine.

        Args:
            on_step: called after every step; raising from it ends the run.

        Raises:
            EngineError: the engine is closed. A failed step ends its requests with outputs of reason ``error``.
        """
        engine, started_s = self._engine, time.perf_counter()
        try:
            while not self._feed.is_finished:
                self._submit()
                for output in engine.step():
                    self._take(output)
                stats = engine.store.stats()[0]
                self.report.peak_blocks = max(self.report.peak_blocks, stats.used + stats.cached)
                if on_step is not None:
                    on_step()
        finally:
            for request_id in list(self._running):
                engine.abort(request_id)
            engine.step()
            for number in list(self._held):
                self._let_go(number)
            self.report.elapsed_s = time.perf_counter() - started_s
        return self.report

    def _submit(self) -> None:
        while self._engine.core.num_waiting < _LOOKAHEAD:
            index = self._feed.next()
            if index is None:
                return
            try:
                request = self._source.request(index)
                self._engine.add(request)
            except RequestError as error:
                self._source.on_refused(index, error)
                self._end(index)
                continue
            self._running[request.request_id] = _Running(index, request.params.num_sequences, request)

    def _take(self, output: GenerateOutput) -> None:
        running = self._running.get(output.request_id)
        if running is None:
            return
        if not running.has_begun:
            running.has_begun = True
            self.report.prompt_tokens += output.num_prompt_tokens
            self.report.computed_prompt_tokens += output.num_prompt_tokens - output.num_cached_tokens
            if output.tokens:
                self._hold(running)
        self.report.output_tokens += len(output.tokens)
        text = running.texts.setdefault(output.index, [])
        text += [token.token_id for token in output.tokens]
        self._source.on_output(running.index, output)
        if output.finish_reason is not None:
            running.num_open -= 1
            # What nobody will ask for again is given back at once; a beginning that is held stays.
            self._engine.store.forget([*running.request.prompt_ids, *text], salt=running.request.cache_salt)
            if not running.num_open:
                del self._running[output.request_id]
                self._end(running.index)

    def _hold(self, running: _Running) -> None:
        """If it led its group, its beginning has been computed: keep it for the others."""
        found = self._feed.on_prompt_computed(running.index)
        if found is None:
            return
        number, prefix_tokens = found
        request = running.request
        self._engine.store.hold(_holder(number), request.prompt_ids[: prefix_tokens + 1], salt=request.cache_salt)
        self._held[number] = request

    def _end(self, index: int) -> None:
        number = self._feed.on_end(index)
        if number is not None and number in self._held:
            self._let_go(number)

    def _let_go(self, number: int) -> None:
        request = self._held.pop(number)
        store = self._engine.store
        store.release(_holder(number))
        store.forget(request.prompt_ids, salt=request.cache_salt)


def _longest_tokens(item: JobItem, max_model_len: int) -> int:
    limit = max_model_len if item.limit_tokens is None else len(item.prompt_ids) + item.limit_tokens
    return min(limit, max_model_len)


def _holder(number: int) -> str:
    return f"beginning of group {number}"
