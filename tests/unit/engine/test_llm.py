# SPDX-License-Identifier: Apache-2.0
"""`LLM`, the Python API."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.checkpoints import write_checkpoint
from ziggurat import LLM, SamplingParams
from ziggurat.engine.llm import CompletionOutput
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


def test_prompt_logprobs(llm: LLM) -> None:
    params = SamplingParams(prompt_logprobs=2, max_tokens=3, temperature=0, ignore_eos=True, n=2)
    (output,) = llm.generate([5, 6, 7, 8], params)
    assert output.prompt_logprobs is not None and len(output.prompt_logprobs) == 4
    assert output.prompt_logprobs[0] is None
    for token_id, entry in zip([6, 7, 8], output.prompt_logprobs[1:], strict=True):
        assert entry is not None and token_id in entry and 2 <= len(entry) <= 3
    assert [len(each.token_ids) for each in output.outputs] == [3, 3]
    # The likelihood of a text is the likelihood of its continuation.
    again = SamplingParams(prompt_logprobs=0, max_tokens=0)
    (continued,) = llm.generate([5, 6, 7, 8], SamplingParams(max_tokens=3, temperature=0, ignore_eos=True, logprobs=0))
    (scored,) = llm.generate([5, 6, 7, 8, *continued.outputs[0].token_ids], again)
    assert scored.prompt_logprobs is not None and scored.prompt_logprobs[4:] == continued.outputs[0].logprobs
    assert (scored.outputs[0].token_ids, scored.outputs[0].finish_reason) == ([], "length")
    (short,) = llm.generate([5], again)
    assert short.prompt_logprobs == [None]


def test_best_of_returns_the_most_likely(llm: LLM) -> None:
    settings = {"seed": 4, "max_tokens": 5, "ignore_eos": True, "temperature": 1.5}
    (every,) = llm.generate("the", SamplingParams(n=6, logprobs=0, **settings))
    (best,) = llm.generate("the", SamplingParams(n=2, best_of=6, **settings))

    def mean(completion: CompletionOutput) -> float:
        assert completion.logprobs is not None
        return sum(sum(each.values()) for each in completion.logprobs) / len(completion.logprobs)

    expected = sorted(every.outputs, key=mean, reverse=True)[:2]
    assert [each.token_ids for each in best.outputs] == [each.token_ids for each in expected]
    assert [each.index for each in best.outputs] == [0, 1] and best.outputs[0].logprobs is None
    with pytest.raises(RequestError, match="best_of must be at least 2"):
        SamplingParams(n=2, best_of=1)


def test_embed(llm: LLM) -> None:
    assert llm.engine.tokenizer is not None
    ids = llm.engine.tokenizer.encode("the thing")
    first, second, other = llm.embed(["the thing", "another", "the thing"])
    assert first.outputs == other.outputs != second.outputs
    assert (first.prompt, first.prompt_token_ids) == ("the thing", ids)
    assert sum(value * value for value in first.outputs.embedding) == pytest.approx(1, abs=1e-6)
    (by_ids,) = llm.embed(ids)
    assert by_ids.outputs == first.outputs and by_ids.prompt is None
    (last,) = llm.embed("the thing", pooling="last", normalize=False)
    assert len(last.outputs.embedding) == len(first.outputs.embedding) != 0
    assert last.outputs != first.outputs
    assert llm.embed([]) == []
    many = llm.embed([[5 + i, 7] for i in range(20)], pooling="last")
    assert [each.prompt_token_ids[0] for each in many] == list(range(5, 25))
    with pytest.raises(RequestError, match="empty"):
        llm.embed(["a", []], pooling="last")
    with pytest.raises(RequestError, match="pooling must be"):
        llm.embed("a", pooling="max")  # type: ignore[arg-type]
    assert not llm.engine.has_work
