# SPDX-License-Identifier: Apache-2.0
"""The whole engine on tiny models: text in, text out, and every byte given back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.checkpoints import CONFIGS, make_tensors, write_checkpoint
from ziggurat.engine.config import EngineConfig
from ziggurat.engine.engine import Engine
from ziggurat.engine.types import GenerateOutput, GenerateRequest
from ziggurat.errors import ContextLengthExceeded, EngineError, QueueFull, RequestError
from ziggurat.memory.ledger import RAM
from ziggurat.scheduling.sampling import SamplingParams

SETTINGS: dict[str, Any] = {"memory": "48MiB", "max_queued_requests": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Engine]:
    with Engine.load(EngineConfig(model=str(folder), **SETTINGS)) as engine:
        yield engine


def request(name: str = "a", prompt: str | list[int] = "the thing", **settings: Any) -> GenerateRequest:
    ids = [2 + ord(letter) % 200 for letter in prompt] if isinstance(prompt, str) else prompt
    return GenerateRequest(request_id=name, prompt_ids=ids, params=SamplingParams(**settings))


def run(engine: Engine, *requests: GenerateRequest) -> dict[tuple[str, int], list[GenerateOutput]]:
    for each in requests:
        engine.add(each)
    outputs: dict[tuple[str, int], list[GenerateOutput]] = {}
    while engine.has_work:
        for output in engine.step():
            outputs.setdefault((output.request_id, output.index), []).append(output)
    return outputs


def text_of(outputs: list[GenerateOutput]) -> str:
    return "".join(output.text for output in outputs)


def tokens_of(outputs: list[GenerateOutput]) -> list[int]:
    return [token.token_id for output in outputs for token in output.tokens]


def test_text_is_the_decoded_tokens(engine: Engine) -> None:
    assert engine.tokenizer is not None
    outputs = run(engine, request(max_tokens=40, seed=3, n=3, ignore_eos=True))
    assert len({text_of(each) for each in outputs.values()}) == 3
    for each in outputs.values():
        assert text_of(each) == engine.tokenizer.decode(tokens_of(each))
        last = each[-1]
        assert (last.finish_reason, last.num_output_tokens, last.num_prompt_tokens) == ("length", 40, 9)
        assert [output.finish_reason for output in each[:-1]] == [None] * 39


def test_a_stop_string_ends_the_text_before_it(engine: Engine) -> None:
    whole = text_of(run(engine, request(max_tokens=40, seed=5, ignore_eos=True))["a", 0])
    stop = whole[10:13]
    first = whole.find(stop)
    (outputs,) = run(engine, request(max_tokens=40, seed=5, ignore_eos=True, stop=(stop, "never"))).values()
    assert text_of(outputs) == whole[:first]
    assert (outputs[-1].finish_reason, outputs[-1].stop_reason) == ("stop", stop)
    (kept,) = run(
        engine, request(max_tokens=40, seed=5, ignore_eos=True, stop=(stop,), include_stop_str_in_output=True)
    ).values()
    assert text_of(kept) == whole[: first + len(stop)]


def test_a_stop_token_ends_the_text_without_its_own(engine: Engine) -> None:
    assert engine.tokenizer is not None
    tokens = tokens_of(run(engine, request(max_tokens=30, seed=6, ignore_eos=True))["a", 0])
    stop = tokens[7]
    length = tokens.index(stop) + 1
    (outputs,) = run(engine, request(max_tokens=30, seed=6, ignore_eos=True, stop_token_ids=(stop,))).values()
    assert tokens_of(outputs) == tokens[:length]
    assert text_of(outputs) == engine.tokenizer.decode(tokens[: length - 1])
    assert (outputs[-1].finish_reason, outputs[-1].stop_reason) == ("stop", stop)


def test_the_end_of_sequence_token_ends_the_text(engine: Engine) -> None:
    bias = {engine.model.eos_ids[0]: 100.0}
    (outputs,) = run(engine, request(max_tokens=30, temperature=0, logit_bias=bias, min_tokens=4)).values()
    assert tokens_of(outputs)[-1] == engine.model.eos_ids[0] and len(tokens_of(outputs)) == 5
    assert (outputs[-1].finish_reason, outputs[-1].stop_reason) == ("stop", None)


def test_the_second_turn_finds_the_first_in_the_cache(engine: Engine) -> None:
    prompt = list(range(2, 82))
    first = run(engine, request("one", prompt, max_tokens=4, temperature=0))["one", 0]
    again = run(engine, request("two", [*prompt, *tokens_of(first), 5], max_tokens=4, temperature=0))["two", 0]
    assert again[-1].num_cached_tokens == 80
    report = engine.memory()
    assert report["prefix_cache"]["hit_tokens"] >= 80 and report["prefix_cache"]["cached_bytes"] > 0


def test_aborting_at_any_moment(engine: Engine) -> None:
    engine.abort("nobody")
    engine.add(request("w", max_tokens=50))
    engine.abort("w")
    (output,) = engine.step()
    assert (output.finish_reason, output.tokens) == ("abort", ())
    engine.add(request("r", max_tokens=50, n=2, ignore_eos=True))
    engine.step()
    engine.step()
    engine.abort("r")
    ends = engine.step()
    assert [(each.index, each.finish_reason, each.num_output_tokens) for each in ends] == [
        (0, "abort", 2),
        (1, "abort", 2),
    ]
    assert not engine.has_work


def test_wrong_requests_are_refused(engine: Engine) -> None:
    def refused(error: type[RequestError], match: str, **settings: Any) -> None:
        with pytest.raises(error, match=match):
            engine.add(request(**settings))

    refused(RequestError, "the prompt is empty", prompt=[])
    refused(RequestError, r"prompt token 300 is not in the vocabulary \(ids 0 to 299\)", prompt=[5, 300])
    refused(RequestError, "prompt token -1", prompt=[-1])
    refused(RequestError, "logit_bias token 300", logit_bias={300: 1.0})
    refused(RequestError, "stop token 1000", stop_token_ids=(1000,))
    refused(ContextLengthExceeded, "maximum context length is 256", prompt=[5] * 250, max_tokens=7)
    for name in "abcd":
        engine.add(request(name, max_tokens=2))
    refused(QueueFull, "the queue holds 4", name="e")
    with pytest.raises(RequestError, match="still in use"):
        engine.add(request("a"))
    run(engine)


def test_logprobs_come_with_the_tokens(engine: Engine) -> None:
    (outputs,) = run(engine, request(max_tokens=3, temperature=0, logprobs=2)).values()
    for output in outputs:
        (token,) = output.tokens
        assert token.logprob == token.top_logprobs[0][1] and len(token.top_logprobs) == 2


def test_the_report_adds_up(engine: Engine) -> None:
    engine.add(request("held", list(range(150, 102, -1)), max_tokens=20, ignore_eos=True))
    engine.step()
    report, stats = engine.memory(), engine.stats()
    top = [row for row in report["ledger"] if row["depth"] == 0 and row["tier"] == RAM]
    assert sum(row["num_bytes"] for row in top) == report["limits"][RAM] == 48 << 20
    (holding,) = report["sequences"]
    assert holding["seq_id"] == "held/0" and holding["num_blocks"] == [3]
    assert any(row["owner"] == "held/0" and row["num_bytes"] > 0 and row["depth"] == 1 for row in report["ledger"])
    (group,) = report["kv"]
    assert group["free_blocks"] + group["cached_blocks"] + group["used_blocks"] == group["total_blocks"]
    assert stats["num_requests_running"] == 1 and stats["kv_used_bytes"] == 3 * group["block_bytes"]
    # 48 tokens fill three blocks of 16 exactly: nothing is wasted until the next token takes a block of its own.
    assert stats["kv_waste_ratio"] == 0 and group["wasted_bytes"] == 0
    engine.step()
    assert engine.stats()["kv_waste_ratio"] == pytest.approx(15 / 64)
    assert report["planned_bytes"] + report["reserve_bytes"] == 48 << 20
    run(engine)
    assert engine.memory()["sequences"] == []


def test_closing_gives_everything_back(folder: Path) -> None:
    engine = Engine.load(EngineConfig(model=str(folder), **SETTINGS))
    run(engine, request("done", max_tokens=3))
    engine.add(request("open", max_tokens=30, n=3))
    engine.step()
    ledger = engine.resources.ledger
    engine.close()
    engine.close()
    assert ledger.used() == 0 and not engine.has_work
    with pytest.raises(EngineError, match="closed"):
        engine.add(request())


def test_broken_numbers_end_one_sequence_only(tmp_path: Path) -> None:
    """The embedding of token 50 is NaN: whoever has it in the prompt fails, its neighbour in every batch does not notice."""
    tensors = make_tensors(CONFIGS["llama"])
    tensors["model.embed_tokens.weight"][50] = torch.nan
    write_checkpoint(tmp_path)
    save_file(tensors, tmp_path / "model.safetensors")
    with Engine.load(EngineConfig(model=str(tmp_path), **SETTINGS)) as engine:
        good = request("good", [7, 8, 9], max_tokens=6, temperature=0)
        alone = tokens_of(run(engine, good)["good", 0])
        outputs = run(engine, good, request("bad", [49, 50, *range(60, 90)], max_tokens=6, n=2))
        assert tokens_of(outputs["good", 0]) == alone
        for index in (0, 1):
            (end,) = outputs["bad", index]
            assert end.finish_reason == "error" and "NaN or infinity" in (end.error or "")
        again = run(engine, request("again", [49, 50, *range(60, 90)], max_tokens=1))["again", 0]
        assert again[-1].num_cached_tokens == 0
