# SPDX-License-Identifier: Apache-2.0
"""The exact level, bit for bit: what a request gets does not depend on batch, chunks, prefix reuse, preemption, planner, eviction, order,
block size or threads. Compared are sampled tokens and their log-probabilities, unrounded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.checkpoints import write_checkpoint
from tests.unit.engine.settings import FASTEST, Setting, load
from ziggurat.engine.engine import Engine
from ziggurat.engine.types import GenerateRequest
from ziggurat.memory.eviction import EVICTION_POLICIES
from ziggurat.scheduling.planners import PLANNERS
from ziggurat.scheduling.protocol import SampledToken
from ziggurat.scheduling.sampling import SamplingParams

COMMON = [7 + (i * i) % 280 for i in range(40)]
Answers = dict[tuple[str, int], list[SampledToken]]


def make_requests() -> list[GenerateRequest]:
    """Shared beginnings of different lengths, several kinds of sampling, one with n = 2."""
    sampling = [
        SamplingParams(temperature=0, max_tokens=9, logprobs=2, ignore_eos=True),
        SamplingParams(seed=1, max_tokens=12, logprobs=2, ignore_eos=True, top_p=0.95),
        SamplingParams(seed=2, max_tokens=7, logprobs=2, ignore_eos=True, n=2, repetition_penalty=1.2),
        SamplingParams(seed=3, max_tokens=20, logprobs=2, ignore_eos=True, top_k=20, temperature=1.5),
        SamplingParams(seed=4, max_tokens=15, logprobs=2, ignore_eos=True, frequency_penalty=1.0),
    ]
    prompts = [COMMON[:33], [*COMMON[:20], 5, 6, 7], COMMON, [9], [*COMMON[:24], *range(50, 80)]]
    return [
        GenerateRequest(request_id=f"r{i}", prompt_ids=prompt, params=params)
        for i, (prompt, params) in enumerate(zip(prompts, sampling, strict=True))
    ]


def serve(engine: Engine, requests: Sequence[GenerateRequest], gaps: Sequence[int]) -> Answers:
    answers: Answers = {}

    def step() -> None:
        for output in engine.step():
            assert output.finish_reason != "error", output.error
            answers.setdefault((output.request_id, output.index), []).extend(output.tokens)

    for request, gap in zip(requests, gaps, strict=True):
        engine.add(request)
        for _ in range(gap):
            step()
    while engine.has_work:
        step()
    return answers


def run(folder: Path, setting: Setting) -> Answers:
    requests = [make_requests()[index] for index in setting.order]
    with load(folder, setting) as engine:
        if setting.is_alone:
            answers = {key: value for each in requests for key, value in serve(engine, [each], (0,)).items()}
        else:
            answers = serve(engine, requests, setting.gaps)
        if setting.is_repeated:
            answers = serve(engine, requests, setting.gaps)
        counters = engine.core.counters
        assert counters.stalls == 0
        run.preemptions += counters.preemptions  # type: ignore[attr-defined]
        run.evictions += engine.core.store.cache.num_evicted_blocks  # type: ignore[attr-defined]
        run.hits += counters.prefix_hit_tokens  # type: ignore[attr-defined]
    return answers


run.preemptions = run.hits = run.evictions = 0  # type: ignore[attr-defined]

SETTINGS = st.builds(
    Setting,
    threads=st.sampled_from([1, 2]),
    max_num_seqs=st.sampled_from([1, 2, 5]),
    max_num_batched_tokens=st.sampled_from([7, 16, 33, 256]),
    block_size=st.sampled_from([4, 16]),
    spare_blocks=st.sampled_from([0, 1, 3, 100]),
    has_prefix_cache=st.booleans(),
    planner=st.sampled_from(PLANNERS.names()),
    eviction=st.sampled_from(EVICTION_POLICIES.names()),
    order=st.permutations(range(5)).map(tuple),
    gaps=st.tuples(*[st.integers(0, 4)] * 5),
    is_repeated=st.booleans(),
)


@pytest.fixture(
    scope="module", params=["llama float32", "qwen2_window float16", "qwen3_moe float32", "gemma2 bfloat16"]
)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights and KV in all three storage types."""
    name, dtype = request.param.split()
    return write_checkpoint(tmp_path_factory.mktemp(name), name, dtype=getattr(torch, dtype), with_tokenizer=False)


@cache
def reference(folder: Path, backend: str, quantization: str = "auto") -> Answers:
    """Each request alone, whole prompts, one thread."""
    answers = run(folder, Setting(backend=backend, is_alone=True, quantization=quantization))
    assert {len(tokens) for tokens in answers.values()} == {9, 12, 7, 20, 15} and len(answers) == 6
    return answers


TIGHT = Setting(spare_blocks=0, block_size=4, max_num_seqs=5, max_num_batched_tokens=16)
REUSING = Setting(spare_blocks=2, has_prefix_cache=True, is_repeated=True, threads=2, max_num_seqs=5)


@settings(max_examples=7)
@given(setting=SETTINGS)
@example(setting=TIGHT)
@example(setting=REUSING)
@example(setting=replace(TIGHT, planner="request-level"))
@example(setting=replace(TIGHT, planner="orca"))
@example(setting=replace(TIGHT, planner="splitfuse"))
@example(setting=replace(REUSING, planner="splitfuse", max_num_batched_tokens=16))
def test_nothing_around_a_request_changes_it(folder: Path, setting: Setting) -> None:
    answers = run(folder, replace(setting, backend=FASTEST))
    assert answers == reference(folder, FASTEST)


@pytest.mark.parametrize("policy", EVICTION_POLICIES.names())
def test_whoever_is_evicted_nothing_changes(folder: Path, policy: str) -> None:
    """Every policy, in a pool in which it has to choose."""
    setting = replace(REUSING, backend=FASTEST, block_size=4, spare_blocks=0, max_num_seqs=2, eviction=policy)
    before = run.evictions  # type: ignore[attr-defined]
    assert run(folder, setting) == reference(folder, FASTEST)
    assert run.evictions > before  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def plain_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("plain"), "qwen2", dtype=torch.bfloat16, with_tokenizer=False)


@pytest.mark.parametrize("quantization", ["q8_0", "q4_0"])
@settings(max_examples=5)
@given(setting=SETTINGS, swap_space=st.sampled_from([0, "1MiB"]))
@example(setting=TIGHT, swap_space="1MiB")
@example(setting=REUSING, swap_space=0)
def test_nothing_around_a_request_changes_it_with_quantized_weights_and_swapping(
    plain_folder: Path, quantization: str, setting: Setting, swap_space: str | int
) -> None:
    answers = run(plain_folder, replace(setting, backend=FASTEST, quantization=quantization, swap_space=swap_space))
    assert answers == reference(plain_folder, FASTEST, quantization)


@pytest.mark.skipif(FASTEST == "torch", reason="the native kernels are not built: the property ran with the twins")
@pytest.mark.parametrize("setting", [TIGHT, REUSING])
def test_the_twins_keep_it_with_quantized_weights(plain_folder: Path, setting: Setting) -> None:
    answers = run(plain_folder, replace(setting, quantization="q8_0"))
    assert answers == run(plain_folder, Setting(is_alone=True, quantization="q8_0"))


@pytest.mark.skipif(FASTEST == "torch", reason="the native kernels are not built: the property ran with the twins")
@pytest.mark.parametrize(("setting", "name"), [(TIGHT, "qwen3_moe"), (REUSING, "qwen2_window"), (REUSING, "gemma2")])
def test_the_twins_keep_it_too(tmp_path_factory: pytest.TempPathFactory, setting: Setting, name: str) -> None:
    """The twins are slow, so telling settings stand for the property."""
    folder = write_checkpoint(tmp_path_factory.mktemp("twins"), name, with_tokenizer=False)
    assert run(folder, setting) == run(folder, Setting(is_alone=True))


def test_the_settings_did_preempt_and_reuse() -> None:
    """Runs after the property: had nothing been preempted or reused, it would have shown little."""
    assert run.preemptions > 0 and run.hits > 0  # type: ignore[attr-defined]
