# SPDX-License-Identifier: Apache-2.0
"""`LLM`, the Python API."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.checkpoints import write_checkpoint
from ziggurat import LLM, SamplingParams
from ziggurat.errors import ConfigError, EngineError, RequestError
from ziggurat.scheduling.protocol import Batch, Executor, StepResult

GREEDY = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    with LLM(str(write_checkpoint(tmp_path_factory.mktemp("model"))), memory="48MiB", max_queued_requests=3) as llm:
        yield llm


def test_prompts_of_every_kind(llm: LLM) -> None:
    assert llm.engine.tokenizer is not None
    ids = llm.engine.tokenizer.encode("the thing")
    (by_text,) = llm.generate("the thing", GREEDY)
    (by_ids,) = llm.generate(ids, GREEDY)
    both = llm.generate(["the thing", ids], [GREEDY, GREEDY])
    texts = {output.outputs[0].text for output in (by_text, by_ids, *both)}
    assert len(texts) == 1
    assert (by_text.prompt, by_ids.prompt, by_ids.prompt_token_ids) == ("the thing", None, ids)
    assert llm.generate([]) == []


def test_more_prompts_than_the_queue_holds(llm: LLM) -> None:
    prompts = [[5 + i, 7] for i in range(50)]
    outputs = llm.generate(prompts, SamplingParams(max_tokens=3, temperature=0, ignore_eos=True))
    assert [output.prompt_token_ids for output in outputs] == prompts
    for output in outputs:
        assert len(output.outputs[0].token_ids) == 3 and output.outputs[0].finish_reason == "length"
        metrics = output.metrics
        assert metrics.first_token_s and metrics.finished_s
        assert metrics.arrival_s <= metrics.first_token_s <= metrics.finished_s


def test_n_continuations_with_logprobs(llm: LLM) -> None:
    (output,) = llm.generate("the", SamplingParams(n=3, seed=1, max_tokens=4, logprobs=1, ignore_eos=True))
    assert [each.index for each in output.outputs] == [0, 1, 2]
    assert len({tuple(each.token_ids) for each in output.outputs}) > 1
    for each in output.outputs:
        assert each.logprobs is not None and len(each.logprobs) == 4
        assert all(token in values for token, values in zip(each.token_ids, each.logprobs, strict=True))


def test_chat(llm: LLM) -> None:
    (output,) = llm.chat([{"role": "user", "content": "hi"}], GREEDY)
    assert output.prompt == "<s><|user|>hi\n<|assistant|>"
    assert output.prompt_token_ids[0] == 0 and output.prompt_token_ids.count(0) == 1
    assert len(llm.chat([[{"role": "user", "content": "a"}], [{"role": "user", "content": "b"}]], GREEDY)) == 2


def test_a_wrong_request_leaves_nothing_running(llm: LLM) -> None:
    with pytest.raises(RequestError, match="not in the vocabulary"):
        llm.generate([[5, 6], [7, 8], [9, 300]], GREEDY)
    assert not llm.engine.has_work
    with pytest.raises(RequestError, match="2 sampling parameters for 1 prompts"):
        llm.generate("a", [GREEDY, GREEDY])


def test_unknown_settings_name_the_nearest() -> None:
    with pytest.raises(ConfigError, match="no setting 'max_num_seq', did you mean 'max_num_seqs'"):
        LLM("embedded", max_num_seq=3)


class Interrupts:
    """Stands before an executor and is interrupted, or fails, in its third step."""

    def __init__(self, executor: Executor, error: BaseException) -> None:
        self._executor, self._error, self._count = executor, error, 0

    def run(self, batch: Batch) -> StepResult:
        self._count += 1
        if self._count == 3:
            raise self._error
        return self._executor.run(batch)


@pytest.mark.parametrize(
    ("error", "raised"), [(KeyboardInterrupt(), KeyboardInterrupt), (MemoryError("no more"), EngineError)]
)
def test_after_an_interrupt_the_engine_is_as_new(
    llm: LLM, monkeypatch: pytest.MonkeyPatch, error: BaseException, raised: type[BaseException]
) -> None:
    prompts = [[9, 8, 7, 6], list(range(100, 140))]
    expected = [output.outputs[0].token_ids for output in llm.generate(prompts, GREEDY)]
    with monkeypatch.context() as patch:
        patch.setattr(llm.engine.core, "executor", Interrupts(llm.engine.executor, error))
        with pytest.raises(raised):
            llm.generate(prompts, GREEDY)
    assert not llm.engine.has_work
    assert all(stats.used == 0 for stats in llm.engine.store.stats())
    llm.engine.store.audit()
    assert [output.outputs[0].token_ids for output in llm.generate(prompts, GREEDY)] == expected
