# SPDX-License-Identifier: Apache-2.0
"""Logits masks, with a small regular language: what comes out is in the language, whatever happens on the way."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.checkpoints import EOS_ID, VOCAB_SIZE, write_checkpoint
from tests.preempting import Preempting
from tests.unit.engine.settings import FASTEST, Setting, load
from ziggurat.engine.engine import Engine
from ziggurat.engine.sampler import Sampler
from ziggurat.engine.structured import MaskStates
from ziggurat.engine.types import GenerateOutput, GenerateRequest
from ziggurat.errors import EngineError
from ziggurat.scheduling.protocol import SampleRequest
from ziggurat.scheduling.sampling import SamplingParams

A, B, C = 50, 150, 299  # the last one is the vocabulary's last token
NAMES = {A: "a", B: "b", C: "c", EOS_ID: "$"}


class Automaton:
    """The language ``(ab+c)+`` and the end of the text. States are numbers; counts its calls."""

    TABLE = {0: {A: 1}, 1: {B: 2}, 2: {B: 2, C: 3}, 3: {A: 1, EOS_ID: 4}, 4: {EOS_ID: 4}}

    def __init__(self) -> None:
        self.num_starts = self.num_advances = 0

    def start(self, prompt_ids: Sequence[int]) -> int:
        self.num_starts += 1
        return 0

    def mask(self, state: int) -> bytes:
        bits = np.zeros(VOCAB_SIZE, np.uint8)
        bits[list(self.TABLE[state])] = 1
        return np.packbits(bits, bitorder="little").tobytes()

    def advance(self, state: int, token_id: int) -> int:
        self.num_advances += 1
        return self.TABLE[state][token_id]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model"), with_tokenizer=False)


def run(engine: Engine, *requests: GenerateRequest) -> tuple[dict[tuple[str, int], str], list[GenerateOutput]]:
    for request in requests:
        engine.add(request)
    texts: dict[tuple[str, int], str] = {}
    outputs = []
    while engine.has_work:
        for output in engine.step():
            outputs.append(output)
            text = "".join(NAMES[token.token_id] for token in output.tokens)
            texts[output.request_id, output.index] = texts.get((output.request_id, output.index), "") + text
    return texts, outputs


def masked(name: str, mask: Any, **params: Any) -> GenerateRequest:
    settings = {"max_tokens": 20, "seed": 3, "temperature": 9.0, "logits_mask": mask} | params
    return GenerateRequest(request_id=name, prompt_ids=list(range(10, 35)), params=SamplingParams(**settings))


def test_in_the_language_with_forks_and_preemption_and_the_same_text(folder: Path) -> None:
    roomy = Setting(backend=FASTEST)
    with load(folder, roomy) as engine:
        expected, _ = run(engine, masked("a", Automaton(), n=6), masked("b", Automaton(), temperature=0))
    assert len(expected) == 7 and len(set(expected.values())) > 2
    for text in expected.values():
        assert re.fullmatch(r"(ab+c)+\$|(ab+c)*(ab*)?", text) and (text.endswith("$") or len(text) == 20)
    tight = Setting(backend=FASTEST, max_num_seqs=3, max_num_batched_tokens=9, has_prefix_cache=True)
    with load(folder, tight) as engine:
        planner = Preempting(engine.core.planner, period=4, times=12)
        engine.core.planner = planner
        found, _ = run(engine, masked("a", Automaton(), n=6), masked("b", Automaton(), temperature=0))
        assert any(computed > 25 for _, computed in planner.at), "some were preempted in their output"
    assert found == expected


def test_each_token_advances_once(folder: Path) -> None:
    automaton = Automaton()
    with load(folder, Setting(backend=FASTEST)) as engine:
        texts, _ = run(engine, masked("a", automaton))
        run(engine, masked("a", automaton))  # the same id again is another sequence
    assert automaton.num_starts == 2
    assert automaton.num_advances == 2 * (len(texts["a", 0]) - 1)


class Fails(Automaton):
    """Goes wrong after the second token."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self._how = how

    def mask(self, state: int) -> Any:
        if state < 2:
            return super().mask(state)
        if self._how == "raises":
            raise ValueError("no such rule")
        return bytes(38 if self._how == "empty" else 37)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("raises", "failed after 2 tokens: ValueError: no such rule"),
        ("empty", "allows no token after 2 tokens"),
        ("short", "has 296 bits for a vocabulary of 300 tokens"),
    ],
)
def test_a_broken_mask_ends_its_own_sequence_with_its_reason(folder: Path, how: str, message: str) -> None:
    with load(folder, Setting(backend=FASTEST)) as engine:
        texts, outputs = run(engine, masked("bad", Fails(how)), masked("good", Automaton()))
        engine.store.audit()
    (failed,) = [output for output in outputs if output.finish_reason == "error"]
    assert failed.request_id == "bad" and failed.error == f"the logits mask of sequence 'bad/0' {message}"
    assert len(texts["bad", 0]) == 2 and len(texts["good", 0]) > 2


def test_no_mask_in_a_state_allows_everything_and_more_bits_are_ignored() -> None:
    class Free(Automaton):
        def mask(self, state: int) -> Any:
            return None if state == 0 else np.full(10, -1, np.int32)

    states = MaskStates(VOCAB_SIZE, 1)
    params = SamplingParams(logits_mask=Free())
    outputs: list[int] = []
    request = SampleRequest(
        seq_ids=("s",), seeds=(1,), params=params, prompt_ids=(5,), output_ids=outputs, eos_ids=(EOS_ID,)
    )
    assert states.allowed(request) is None
    outputs.append(A)
    allowed = states.allowed(request)
    assert allowed is not None and list(allowed) == list(range(VOCAB_SIZE))


def test_only_so_many_states_are_kept_and_none_is_missed() -> None:
    states, automaton = MaskStates(VOCAB_SIZE, 2), Automaton()
    params = SamplingParams(logits_mask=automaton)
    requests = [
        SampleRequest(seq_ids=(f"s{i}",), seeds=(1,), params=params, prompt_ids=(5,), output_ids=[A, B], eos_ids=())
        for i in range(3)
    ]
    for _ in range(2):
        for request in requests:
            allowed = states.allowed(request)
            assert allowed is not None and list(allowed) == [B, C]
    assert len(states._states) == 2


def test_a_mask_that_allows_only_what_is_suppressed_says_so() -> None:
    class OnlyEnd(Automaton):
        def start(self, prompt_ids: Sequence[int]) -> int:
            return 4

    for temperature in (0.0, 1.0):
        params = SamplingParams(logits_mask=OnlyEnd(), min_tokens=3, temperature=temperature)
        request = SampleRequest(
            seq_ids=("s",), seeds=(1,), params=params, prompt_ids=(5,), output_ids=[], eos_ids=(EOS_ID,)
        )
        with pytest.raises(EngineError, match="no token is left to choose from for sequence 's'"):
            Sampler(VOCAB_SIZE).sample(np.zeros(VOCAB_SIZE, np.float32), request)
