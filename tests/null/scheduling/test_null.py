# SPDX-License-Identifier: Apache-2.0
"""The null executor, decision logs, seeds, and what one sequence knows of itself."""

from __future__ import annotations

import json

import pytest

from tests.cores import drain, make_core, request, tokens_of
from ziggurat.errors import ConfigError
from ziggurat.scheduling.decisions import DecisionLog
from ziggurat.scheduling.fairness import ClientShare
from ziggurat.scheduling.null import NullExecutor
from ziggurat.scheduling.sequence import SequenceState, SequenceStatus, derive_seed


def texts(num_blocks: int, tokens: int, seqs: int, executor: NullExecutor, **params: int) -> dict[str, list[int]]:
    core = make_core(num_blocks=num_blocks, tokens=tokens, seqs=seqs, executor=executor, eos_ids=(7,))
    for name in "abcd":
        core.add(request(name, num_prompt=9, max_tokens=12, seed=1, n=2, **params), 0.0)
    outputs = drain(core)
    return {f"{name}/{index}": tokens_of(outputs, f"{name}/{index}") for name in "abcd" for index in range(2)}


def test_tokens_depend_on_nothing_but_sequence_seed_and_position() -> None:
    roomy = texts(64, 64, 8, NullExecutor(vocab_size=50))
    assert roomy == texts(6, 5, 4, NullExecutor(vocab_size=50))
    assert len({tuple(tokens) for tokens in roomy.values()}) == 8
    assert all(0 <= token_id < 50 and token_id != 7 for tokens in roomy.values() for token_id in tokens)


def test_eos_comes_only_when_asked_for_and_not_too_early() -> None:
    with_minimum = texts(64, 64, 8, NullExecutor(eos_rate=0.3), min_tokens=3).values()
    lengths = [len(tokens) for tokens in with_minimum]
    assert all(7 not in tokens[:3] for tokens in with_minimum)
    assert 4 <= min(lengths) < max(lengths) <= 12
    assert {len(tokens) for tokens in texts(64, 64, 8, NullExecutor(eos_rate=1.0)).values()} == {1}


@pytest.mark.parametrize("options", [{"vocab_size": 1}, {"eos_rate": 1.5}, {"eos_rate": -0.1}])
def test_impossible_settings_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="vocab_size must be at least 2"):
        NullExecutor(**options)  # type: ignore[arg-type]


def test_stop_tokens_of_a_request_do_not_come_by_chance() -> None:
    core = make_core(executor=NullExecutor(vocab_size=3), max_model_len=64, num_blocks=32)
    core.add(request("a", max_tokens=40, stop_token_ids=(0, 1)), 0.0)
    assert set(tokens_of(drain(core), "a/0")) == {2}


# ---- the decision log


def log_of(*names: str, keep: bool = True) -> DecisionLog:
    log = DecisionLog(keep=keep)
    core = make_core(log=log)
    for name in names:
        core.add(request(name, num_prompt=9, max_tokens=2, n=2), 0.0)
    drain(core)
    return log


def test_a_record_says_what_was_decided_and_no_time() -> None:
    log = log_of("a")
    assert [json.loads(line) for line in log.to_jsonl().splitlines()] == list(log)
    first, second, third = log
    assert first == {"step": 0, "preempted": [], "admitted": [["a/0", 0]], "chunks": [["a/0", 0, 8]], "finished": []}
    assert second["chunks"] == [["a/0", 8, 1]]
    assert third["chunks"] == [["a/0", 9, 1], ["a/1", 9, 1]]
    assert third["finished"] == [["a/0", "length"], ["a/1", "length"]]


def test_equal_decisions_equal_digests() -> None:
    assert log_of("a", "b").digest() == log_of("a", "b").digest() == log_of("a", "b", keep=False).digest()
    assert log_of("a", "b").digest() != log_of("b", "a").digest()
    assert log_of("a", "b").first_difference(log_of("a", "b")) is None
    shorter, longer = log_of("a"), log_of("a", "b")
    difference = shorter.first_difference(longer)
    assert difference is not None
    assert difference[0] == list(shorter)[1]
    assert (len(log_of("a", keep=False)), list(log_of("a", keep=False))) == (3, [])


def test_endings_from_outside_are_filed_with_the_next_step() -> None:
    log = DecisionLog()
    core = make_core(log=log)
    core.add(request("a"), 0.0)
    core.add(request("b", max_tokens=1), 0.0)
    core.abort("a")
    core.step(0.0)
    assert next(iter(log))["finished"] == [["a/0", "abort"], ["b/0", "length"]]


# ---- sequences


def test_derived_seeds_are_fixed_spread_and_in_range() -> None:
    assert derive_seed(0, 0) == derive_seed(0, 0)
    seeds = {derive_seed(base, index) for base in (-(2**63), -1, 0, 1, 2**63 - 1) for index in range(50)}
    assert len(seeds) == 250
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert sum(seed > 2**62 for seed in seeds) in range(90, 160)


def test_slices_cross_from_prompt_to_output() -> None:
    seq = SequenceState(
        seq_id="a/0",
        request_id="a",
        index=0,
        prompt_ids=(1, 2, 3),
        params=request().params,
        max_tokens=4,
        expected_tokens=4,
        seed=0,
        cache_salt="",
        priority=0,
        arrival=0,
        arrival_s=0.0,
        deadline_s=float("inf"),
        client=ClientShare(name=""),
        since_s=0.0,
        max_slots=4,
        status=SequenceStatus.RUNNING,
        output_ids=[4, 5],
    )
    whole = [1, 2, 3, 4, 5]
    for start in range(5):
        for length in range(1, 6 - start):
            assert seq.slice_ids(start, length) == whole[start : start + length]
    assert seq.token_ids() == whole
    assert seq.view().num_uncomputed == 5
