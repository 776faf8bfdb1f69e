# SPDX-License-Identifier: Apache-2.0
"""Batch files on a tiny model: answers as requests alone would get them, in the order of the input, whatever stops the job."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.checkpoints import write_checkpoint
from ziggurat import LLM, SamplingParams
from ziggurat.engine.config import EngineConfig
from ziggurat.engine.engine import Engine
from ziggurat.engine.fingerprint import fingerprint
from ziggurat.errors import ConfigError
from ziggurat.scheduling.protocol import Batch, StepResult
from ziggurat.server.batch.journal import Journal
from ziggurat.server.batch.lines import BatchFile
from ziggurat.server.batch.run import BatchJob, BatchProgress, PlanMismatch, journal_path

SHARED = list(range(5, 45))


def line(custom_id: str, body: dict[str, Any], url: str = "/v1/completions") -> str:
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": url, "body": body}) + "\n"


def job_lines() -> list[str]:
    """Three groups that share beginnings, some that share nothing, several choices, chats, and four that cannot be run."""
    rng = random.Random(7)
    lines = []
    for number in range(24):
        prompt = [*SHARED[: 16 * (1 + number % 2)], *(rng.randrange(5, 90) for _ in range(1 + number % 5))]
        body = {"prompt": prompt, "max_tokens": 1 + number % 7, "temperature": number % 3 / 2, "ignore_eos": True}
        lines.append(line(f"c{number}", body))
    chat = {"messages": [{"role": "user", "content": "the thing"}], "max_tokens": 4}
    lines.append(line("chat", chat, "/v1/chat/completions"))
    lines.append(line("several", {"prompt": [SHARED[:20], [7, 8]], "max_tokens": 5, "n": 2, "ignore_eos": True}))
    lines.append(line("too long", {"prompt": [5] * 400, "max_tokens": 4}))
    lines.append(line("wrong type", {"prompt": [5], "max_tokens": "many"}))
    lines.append(line("streams", {"prompt": [5], "stream": True}))
    lines.append(line("elsewhere", {"input": "x"}, "/v1/embeddings"))
    rng.shuffle(lines)
    return lines


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Engine]:
    config = EngineConfig(model=str(folder), memory="48MiB", max_model_len=256, planner="memory-centric", seed=3)
    with Engine.load(config) as engine:
        yield engine


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_text("".join(job_lines()))
    return path


def run_job(engine: Engine, source: Path, output: Path, **settings: Any) -> bytes:
    with BatchJob(engine, BatchFile(source), output, **settings) as job:
        job.run()
    engine.store.audit()
    stats = engine.store.stats()[0]
    assert stats.used == 0 and not journal_path(output).exists()
    return output.read_bytes()


def test_answers_in_order_with_errors_in_their_place(engine: Engine, source: Path, tmp_path: Path) -> None:
    answers = [json.loads(each) for each in run_job(engine, source, tmp_path / "out.jsonl").splitlines()]
    assert [each["custom_id"] for each in answers] == [each.custom_id for each in BatchFile(source).lines]
    by_id = {each["custom_id"]: each["response"] for each in answers}
    assert {name: by_id[name]["status_code"] for name in ("too long", "wrong type", "streams", "elsewhere")} == {
        "too long": 400,
        "wrong type": 400,
        "streams": 501,
        "elsewhere": 501,
    }
    assert by_id["too long"]["body"]["error"]["code"] == "context_length_exceeded"
    assert by_id["chat"]["body"]["choices"][0]["message"]["role"] == "assistant"
    assert [choice["index"] for choice in by_id["several"]["body"]["choices"]] == [0, 1, 2, 3]
    assert sum(response["status_code"] == 200 for response in by_id.values()) == 26


def test_greedy_answers_are_those_of_requests_alone(engine: Engine, folder: Path, source: Path, tmp_path: Path) -> None:
    answers = [json.loads(each) for each in run_job(engine, source, tmp_path / "out.jsonl").splitlines()]
    by_id = {each["custom_id"]: each["response"]["body"] for each in answers}
    with LLM(str(folder), memory="48MiB", max_model_len=256, enable_prefix_caching=False) as alone:
        for text in job_lines():
            found = json.loads(text)
            body = found["body"]
            if body.get("temperature") != 0:
                continue
            params = SamplingParams(temperature=0, max_tokens=body["max_tokens"], ignore_eos=True)
            (expected,) = alone.generate([body["prompt"]], params)
            assert by_id[found["custom_id"]]["choices"][0]["text"] == expected.outputs[0].text


class _Killed(Exception):
    pass


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(stop=st.integers(0, 60), torn=st.integers(0, 200))
def test_a_stopped_job_ends_with_the_same_file(
    engine: Engine, source: Path, tmp_path: Path, stop: int, torn: int
) -> None:
    whole, output = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    for path in (whole, output, journal_path(output)):
        path.unlink(missing_ok=True)
    expected = run_job(engine, source, whole)
    steps = 0

    def stop_there(progress: BatchProgress) -> None:
        nonlocal steps
        steps += 1
        if steps > stop:
            raise _Killed

    try:
        with BatchJob(engine, BatchFile(source), output) as job:
            job.run(stop_there)
    except _Killed:
        journal = journal_path(output)
        raw = journal.read_bytes()
        # A power cut may leave half a record at the end.
        journal.write_bytes(raw[: max(len(raw) - torn, 0)])
        assert not output.exists()
        assert run_job(engine, source, output) == expected
    else:
        assert output.read_bytes() == expected


def test_what_is_done_is_not_done_again(engine: Engine, source: Path, tmp_path: Path) -> None:
    output, last = tmp_path / "out.jsonl", 0

    def stop_half_way(progress: BatchProgress) -> None:
        nonlocal last
        last = progress.num_done
        if progress.num_done > 14:
            raise _Killed

    with pytest.raises(_Killed), BatchJob(engine, BatchFile(source), output) as job:
        job.run(stop_half_way)
    computed = engine.core.counters.requests
    with BatchJob(engine, BatchFile(source), output) as job:
        assert job.num_resumed == last
        job.run()
    num_units = len(BatchFile(source).lines) - 4 + 1  # four cannot run, one has two prompts
    assert engine.core.counters.requests - computed <= num_units - (last - 4)


def test_a_journal_of_another_job_is_refused(engine: Engine, source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    with BatchJob(engine, BatchFile(source), output):
        pass
    source.write_text("".join(job_lines()[:5]))
    with pytest.raises(ConfigError, match="belongs to another job: its input is"):
        BatchJob(engine, BatchFile(source), output)


def test_a_tokenizer_that_changed_its_mind_is_noticed(
    engine: Engine, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out.jsonl"

    def stop_late(progress: BatchProgress) -> None:
        if progress.num_done >= progress.num_lines - 12:
            raise _Killed

    with pytest.raises(_Killed), BatchJob(engine, BatchFile(source), output) as job:
        job.run(stop_late)
    from ziggurat.server.batch import run

    monkeypatch.setattr(run, "sizes_of", _with_one_more_token(run.sizes_of))
    with pytest.raises(PlanMismatch, match="line .* other tokens"), BatchJob(engine, BatchFile(source), output) as job:
        job.run()


def _with_one_more_token(sizes_of: Any) -> Any:
    from dataclasses import replace

    return lambda *args: [replace(size, prompt_ids=[*size.prompt_ids, 5]) for size in sizes_of(*args)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no request"),
        ('{"custom_id": "a"', "line 1: not valid JSON"),
        (line("a", {}) + "[1]\n", "line 2: a request must be a JSON object"),
        (line("a", {}) + "\n" + line("a", {}), "line 3: custom_id 'a' is on line 1 already"),
        ('{"custom_id": "a", "url": "/v1/completions", "body": {}}', "line 1: the field 'method' is required"),
        (json.dumps({"custom_id": "a", "method": "GET", "url": "/", "body": {}}), "method must be 'POST', got 'GET'"),
    ],
)
def test_files_that_are_no_batch(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        BatchFile(path)


def test_an_output_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot write .*No such file"):
        Journal(tmp_path / "none" / "out.journal", {})


@given(st.lists(st.tuples(st.integers(0, 99), st.text(max_size=20)), max_size=8), st.integers(0, 400), st.booleans())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_journal_keeps_a_beginning_of_what_was_written(
    tmp_path: Path, records: list[tuple[int, str]], cut: int, flips: bool
) -> None:
    path = tmp_path / "x.journal"
    path.unlink(missing_ok=True)
    journal = Journal(path, {"input": "a"})
    for index, text in records:
        journal.append(index, 1, {"text": text})
    journal.close()
    raw = bytearray(path.read_bytes())
    if flips and cut < len(raw):
        raw[cut] ^= 1
    else:
        del raw[cut:]
    path.write_bytes(raw)
    again = Journal(path, {"input": "a"})
    kept = list(again.done)
    again.close()
    names = [index for index, _ in records]
    assert any(set(names[:count]) == set(kept) for count in range(len(names) + 1))


def test_fingerprints_tell_models_apart(folder: Path, tmp_path: Path) -> None:
    other = write_checkpoint(tmp_path / "other")
    first = fingerprint(other)
    weights = next(other.glob("*.safetensors"))
    raw = bytearray(weights.read_bytes())
    raw[len(raw) // 2] ^= 1
    weights.write_bytes(raw)
    assert fingerprint(other) != first and fingerprint(folder) == fingerprint(folder)


def test_llm_batch_answers_as_generate_does(folder: Path) -> None:
    prompts = [[*SHARED[:32], 50 + number] for number in range(9)] + [[3, 4], [3, 4]]
    params = [SamplingParams(temperature=0, max_tokens=1 + number % 4, ignore_eos=True) for number in range(11)]
    with LLM(str(folder), memory="48MiB", max_model_len=128, planner="memory-centric") as llm:
        together = llm.batch(prompts, params)
        assert llm.engine.store.stats()[0].free == llm.engine.store.stats()[0].total
        alone = llm.generate(prompts, params)
    assert [output.outputs[0].token_ids for output in together] == [output.outputs[0].token_ids for output in alone]
    assert sum(output.num_cached_tokens > 0 for output in together) == 8


def test_a_step_that_fails_is_an_error_of_its_lines(engine: Engine, source: Path, tmp_path: Path) -> None:
    class Failing:
        def __init__(self) -> None:
            self.num_runs = 0

        def run(self, batch: Batch) -> StepResult:
            self.num_runs += 1
            if self.num_runs == 3:
                raise RuntimeError("broken")
            return executor.run(batch)

    executor, failing = engine.core.executor, Failing()
    engine.core.executor = failing
    try:
        raw = run_job(engine, source, tmp_path / "out.jsonl")
    finally:
        engine.core.executor = executor
    answers = [json.loads(each) for each in raw.splitlines()]
    assert len(answers) == len(BatchFile(source).lines)
    assert any(each["response"]["status_code"] == 500 for each in answers)
