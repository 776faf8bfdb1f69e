# SPDX-License-Identifier: Apache-2.0
"""A batch file from its lines to its answers: plan, run, journal, one output file in the order of the input."""

from __future__ import annotations

import asyncio
import hashlib
import time
import zlib
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ziggurat.engine.engine import Engine
from ziggurat.engine.fingerprint import fingerprint
from ziggurat.engine.job import JobReport, JobRun, token_array
from ziggurat.engine.types import AnyRequest, GenerateOutput
from ziggurat.errors import ConfigError, EngineError, RequestError, ZigguratError
from ziggurat.scheduling.job import JobItem
from ziggurat.scheduling.sequence import derive_seed
from ziggurat.server.batch.items import Head, Item, Recorded, decode_item, make_item, prompts_of, sizes_of
from ziggurat.server.batch.journal import SUFFIX, Journal
from ziggurat.server.batch.lines import BatchFile
from ziggurat.server.engine_text import EngineText
from ziggurat.server.errors import answer_for, error_object

FLUSH_INTERVAL_S = 1.0
# A text without a limit is expected to be this long until some have ended; then as long as those were on average.
FIRST_EXPECTATION = 128


class PlanMismatch(ConfigError):
    """A prompt is not what it was when the job began."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchProgress:
    """How far a batch is. ``eta_s`` is None before anything has ended."""

    num_done: int
    num_failed: int
    num_lines: int
    eta_s: float | None


@dataclass(slots=True)
class _Line:
    """One line while it is open: its units (one per prompt) that have not ended, and what came."""

    prompts: list[Sequence[int]]
    num_open: int
    first_unit: int
    item: Item | None = None
    outputs: list[tuple[int, GenerateOutput]] = field(default_factory=list)


class BatchJob:
    """One batch file on one engine, which nobody else uses. A context manager: what was finished is safe when it is left.

    Args:
        output: appears when all is done; until then ``OUTPUT.journal`` grows beside it. If that is there, the job goes on.
        expected_tokens: how long texts are expected to be; None takes each request's limit, and the mean so far without one.

    Raises:
        ConfigError: see `BatchFile` and `Journal`.
    """

    def __init__(self, engine: Engine, file: BatchFile, output: Path, *, expected_tokens: int | None = None) -> None:
        self._engine, self._file, self._output = engine, file, output
        self._text = EngineText(engine)
        self._expected = expected_tokens
        self._journal = Journal(journal_path(output), _header(engine, file))
        self.num_resumed = len(self._journal.done)
        self.num_failed = 0
        self._num_ended = self._num_ended_tokens = 0
        self._open: dict[int, _Line] = {}
        self._line_of: list[int] = []
        self._items: list[JobItem] = []
        self._loop = asyncio.Runner()
        self._started_s = self._flushed_s = time.perf_counter()
        self._on_progress: Callable[[BatchProgress], None] | None = None

    def run(self, on_progress: Callable[[BatchProgress], None] | None = None) -> JobReport:
        """To the end; the output file is there afterwards.

        Raises:
            PlanMismatch: a prompt is not the one that a record of the journal answers.
            ConfigError: the disk is full.
        """
        self._on_progress = on_progress
        self._plan()
        done = self._journal.done
        is_done = frozenset(unit for unit, line in enumerate(self._line_of) if line in done)
        run = JobRun(self._engine, self._items, self, is_done)
        self._started_s = time.perf_counter()
        report = run.run(self._on_step)
        self._journal.finish(self._output, len(self._file.lines))
        return report

    def __enter__(self) -> BatchJob:
        return self

    def __exit__(self, *_: object) -> None:
        self._journal.close()
        self._text.close_grammars()
        self._loop.close()

    # ---- the plan

    def _plan(self) -> None:
        """Read every line once; what cannot be run is answered now."""
        for index, line in enumerate(self._file.lines):
            try:
                sizes = sizes_of(self._text, decode_item(self._text, line.url, self._file.body(line)))
            except ZigguratError as error:
                if index not in self._journal.done:
                    self._refuse(index, error)
                continue
            prompts = [token_array(size.prompt_ids) for size in sizes]
            self._check_resumed(index, prompts)
            self._open[index] = _Line(prompts, len(prompts), len(self._items))
            for size, prompt_ids in zip(sizes, prompts, strict=True):
                expected = size.max_tokens or self._expected or FIRST_EXPECTATION
                self._line_of.append(index)
                self._items.append(
                    JobItem(
                        prompt_ids=prompt_ids,
                        output_tokens=max(1, expected) * size.num_sequences,
                        limit_tokens=size.max_tokens,
                        share_key=size.cache_salt,
                    )
                )

    def _check_resumed(self, index: int, prompts: Sequence[Sequence[int]]) -> None:
        found = self._journal.checks().get(index)
        if found is not None and found != _check(prompts):
            raise PlanMismatch(
                f"{self._file.path}, line {self._file.lines[index].number}: the prompt has other tokens than when the job began; "
                "the tokenizer or the chat template is not the same. Give --overwrite to start anew"
            )

    # ---- what the run asks and says (`JobSource`)

    def request(self, unit: int) -> AnyRequest:
        """See `JobSource.request`."""
        index = self._line_of[unit]
        line = self._open.get(index)
        if line is None:
            raise RequestError("another prompt of this line was refused")
        if line.item is None:
            source = self._file.lines[index]
            body = decode_item(self._text, source.url, self._file.body(source))
            if [list(prompt) for prompt in prompts_of(self._text, body)] != [list(prompt) for prompt in line.prompts]:
                raise PlanMismatch(f"{self._file.path}, line {source.number} has changed since the job was planned")
            expected = self._expected_tokens(body.output_limit)
            try:
                line.item = self._loop.run(make_item(self._text, body, line.prompts, self._head(index), expected))
            except RequestError:
                raise
            except ZigguratError as error:
                raise RequestError(str(error)) from error
        return line.item.requests[unit - line.first_unit]

    def on_output(self, unit: int, output: GenerateOutput) -> None:
        """See `JobSource.on_output`."""
        index = self._line_of[unit]
        line = self._open.get(index)
        if line is None:
            return
        line.outputs.append((unit - line.first_unit, output))
        if output.finish_reason is None:
            return
        self._num_ended += 1
        self._num_ended_tokens += output.num_output_tokens
        assert line.item is not None
        request = line.item.requests[unit - line.first_unit]
        is_last = sum(
            each.finish_reason is not None for number, each in line.outputs if number == unit - line.first_unit
        ) == (request.params.num_sequences)
        line.num_open -= is_last
        if not line.num_open:
            self._answer(index, line)

    def on_refused(self, unit: int, error: RequestError) -> None:
        """See `JobSource.on_refused`."""
        if self._line_of[unit] in self._open:
            self._refuse(self._line_of[unit], error)

    # ---- parts

    def _on_step(self) -> None:
        now_s = time.perf_counter()
        if self._journal.num_pending and now_s - self._flushed_s >= FLUSH_INTERVAL_S:
            self._journal.flush()
            self._flushed_s = now_s
        if self._on_progress is not None:
            num_done, num_lines = len(self._journal.done), len(self._file.lines)
            num_new = num_done - self.num_resumed
            eta_s = (now_s - self._started_s) / num_new * (num_lines - num_done) if num_new else None
            self._on_progress(
                BatchProgress(num_done=num_done, num_failed=self.num_failed, num_lines=num_lines, eta_s=eta_s)
            )

    def _answer(self, index: int, line: _Line) -> None:
        assert line.item is not None
        try:
            body = self._loop.run(_collected(line.item, line.outputs))
        except (EngineError, RequestError) as error:
            self._refuse(index, error)
            return
        self._record(index, 200, body, _check(line.prompts))

    def _refuse(self, index: int, error: ZigguratError) -> None:
        line = self._open.get(index)
        self.num_failed += 1
        self._record(
            index, answer_for(error).status, {"error": error_object(error)}, _check(line.prompts) if line else 0
        )

    def _record(self, index: int, status: int, body: Mapping[str, Any], prompts_check: int) -> None:
        self._open.pop(index, None)
        name = self._head(index).request_id
        response = {"status_code": status, "request_id": name, "body": body}
        custom_id = self._file.lines[index].custom_id
        record = {"id": f"batch_req_{name}", "custom_id": custom_id, "response": response, "error": None}
        self._journal.append(index, prompts_check, record)

    def _expected_tokens(self, limit: int | None) -> int | None:
        if self._expected is not None:
            return self._expected
        if limit is not None:
            return limit
        return max(1, self._num_ended_tokens // self._num_ended) if self._num_ended else FIRST_EXPECTATION

    def _head(self, index: int) -> Head:
        name = f"{self._file.digest}/{self._engine.config.seed}/{self._file.lines[index].custom_id}"
        return Head(
            request_id=hashlib.blake2b(name.encode(), digest_size=12).hexdigest(),
            created_unix_s=self._file.created_unix_s,
            seed=derive_seed(self._engine.config.seed, index),
        )


async def _collected(item: Item, outputs: Sequence[tuple[int, GenerateOutput]]) -> Any:
    return await item.collect(Recorded(item.requests, outputs))


def journal_path(output: Path) -> Path:
    """Where the journal of an output is."""
    return output.with_name(output.name + SUFFIX)


def _header(engine: Engine, file: BatchFile) -> dict[str, Any]:
    """What has to be the same for answers to be the same."""
    return {
        "input": file.digest,
        "model": fingerprint(Path(engine.model.path)),
        "weights": engine.model.weight_format,
        "kv_cache": engine.model.kv_format,
        "max_model_len": engine.model.max_model_len,
        "seed": engine.config.seed,
    }


def _check(prompts: Sequence[Sequence[int]]) -> int:
    found = 0
    for prompt in prompts:
        found = zlib.crc32(array("I", prompt).tobytes(), found)
    return found
