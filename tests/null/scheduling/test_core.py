# SPDX-License-Identifier: Apache-2.0
"""EngineCore: requests in and out, endings, forks, preemption, failures."""

from __future__ import annotations

import pytest

from tests.cores import Says, drain, make_core, request, tokens_of
from tests.kv_check import HashingExecutor, expected_tokens
from ziggurat.errors import ConfigError, ContextLengthExceeded, KVCapacityExceeded, QueueFull, RequestError
from ziggurat.scheduling.outputs import StepOutput
from ziggurat.scheduling.sampling import SamplingParams
from ziggurat.scheduling.sequence import Request, derive_seed

# ---- requests in


def test_prompt_over_the_limit_is_refused_with_numbers() -> None:
    core = make_core()
    with pytest.raises(ContextLengthExceeded, match=r"40 tokens.*41 tokens \(40 in the messages") as caught:
        core.add(request(num_prompt=40), 0.0)
    assert caught.value.param == "prompt"
    with pytest.raises(ContextLengthExceeded) as caught:
        core.add(request(num_prompt=30, max_tokens=11), 0.0)
    assert caught.value.param == "max_tokens"
    assert not core.has_work
    assert core.add(request(num_prompt=39), 0.0) == ("a/0",)


def test_max_tokens_of_none_takes_what_is_left() -> None:
    core = make_core()
    core.add(request(num_prompt=30), 0.0)
    outputs = drain(core)
    assert len(tokens_of(outputs, "a/0")) == 10
    assert outputs[-1].finished[0].reason == "length"


def test_what_could_never_fit_is_refused_with_bytes() -> None:
    core = make_core(num_blocks=4)
    with pytest.raises(KVCapacityExceeded, match="lower max_tokens to 12") as caught:
        core.add(request(num_prompt=5, max_tokens=13), 0.0)
    assert (caught.value.needed_bytes, caught.value.available_bytes) == (5000, 4000)
    with pytest.raises(KVCapacityExceeded, match="shorten the prompt"):
        core.add(request(num_prompt=17), 0.0)
    core.add(request(num_prompt=5, max_tokens=12), 0.0)
    assert len(tokens_of(drain(core), "a/0")) == 12


def test_max_tokens_of_none_is_cut_to_the_pool() -> None:
    core = make_core(num_blocks=4)
    core.add(request(num_prompt=16), 0.0)
    assert len(tokens_of(drain(core), "a/0")) == 1


def test_empty_prompt_and_duplicate_id_are_request_errors() -> None:
    core = make_core()
    with pytest.raises(RequestError, match="prompt is empty"):
        core.add(request(num_prompt=0), 0.0)
    core.add(request(), 0.0)
    with pytest.raises(RequestError, match="'a' is still in use"):
        core.add(request(), 0.0)
    core.abort("a")
    core.add(request(), 0.0)


def test_a_full_queue_says_when_to_come_back() -> None:
    core = make_core(max_queued_requests=2, seqs=1)
    core.add(request("a", max_tokens=2), 0.0)
    core.add(request("b", max_tokens=2), 0.0)
    with pytest.raises(QueueFull) as caught:
        core.add(request("c"), 0.0)
    assert caught.value.retry_after_s == 1
    core.step(0.0)
    core.add(request("c", max_tokens=2), 0.0)
    for now_s in (10.0, 20.0, 30.0):
        core.step(now_s)
    core.add(request("d"), 40.0)
    with pytest.raises(QueueFull, match="2 requests are waiting and the queue holds 2: retry in 30 s") as caught:
        core.add(request("e"), 40.0)  # a ended at 10 s, b at 30 s
    assert caught.value.retry_after_s == 30


def test_a_place_in_the_queue_is_free_again_after_an_abort() -> None:
    core = make_core(max_queued_requests=1)
    core.add(request("a"), 0.0)
    core.abort("a")
    core.add(request("b"), 0.0)
    with pytest.raises(QueueFull):
        core.add(request("c"), 0.0)


def test_a_budget_too_small_for_decodes_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_num_batched_tokens 4 must be at least max_num_seqs \\+ 1 = 5"):
        make_core(tokens=4)


# ---- endings


def test_eos_and_stop_tokens_end_a_text_and_are_named() -> None:
    core = make_core(executor=Says(a0=[5, 9, 5], b0=[5, 7]), eos_ids=[9])
    core.add(request("a"), 0.0)
    core.add(request("b", stop_token_ids=(7,)), 0.0)
    done = {entry.seq_id: entry for output in drain(core) for entry in output.finished}
    assert [(done[s].reason, done[s].stop_token_id) for s in ("a/0", "b/0")] == [("stop", 9), ("stop", 7)]
    assert done["a/0"].num_output_tokens == 2


def test_ignore_eos_and_min_tokens() -> None:
    core = make_core(executor=Says(a0=[9] * 9, b0=[9] * 9), eos_ids=[9])
    core.add(request("a", ignore_eos=True, max_tokens=4), 0.0)
    core.add(request("b", min_tokens=2, max_tokens=8), 0.0)
    outputs = drain(core)
    assert len(tokens_of(outputs, "a/0")) == 4
    assert len(tokens_of(outputs, "b/0")) == 3


def test_the_sampler_learns_eos_ids_unless_they_are_ignored() -> None:
    says = Says()
    core = make_core(executor=says, eos_ids=[9, 8])
    core.add(request("a", max_tokens=1), 0.0)
    core.add(request("b", max_tokens=1, ignore_eos=True), 0.0)
    drain(core)
    samples = {item.seq_id: item.sample for batch in says.batches for item in batch.items}
    assert samples["a/0"] is not None and samples["a/0"].eos_ids == (8, 9)
    assert samples["b/0"] is not None and samples["b/0"].eos_ids == ()


def test_abort_works_in_every_state_and_only_once() -> None:
    core = make_core(seqs=1)
    core.add(request("a", num_prompt=20), 0.0)
    core.add(request("b", n=1), 0.0)
    core.step(0.0)  # a is in the middle of its prompt, b waits
    (aborted,) = core.abort("b")
    assert (aborted.reason, aborted.is_request_done) == ("abort", True)
    assert [entry.seq_id for entry in core.abort("a")] == ["a/0"]
    assert core.abort("a") == core.abort("nobody") == ()
    assert not core.has_work
    assert core.store.stats()[0].used == 0
    assert core.step(1.0) == StepOutput(step=1)


def test_finish_ends_one_continuation_from_outside() -> None:
    core = make_core()
    core.add(request("a", n=2, max_tokens=6), 0.0)
    core.step(0.0)
    (done,) = core.finish("a/1", "stop")
    assert (done.index, done.num_output_tokens, done.is_request_done) == (1, 1, False)
    assert core.finish("a/1", "stop") == core.finish("zz/0", "stop") == core.finish("odd", "stop") == ()
    outputs = drain(core)
    assert [entry.seq_id for output in outputs for entry in output.finished] == ["a/0"]
    assert core.counters.finished == {"stop": 1, "length": 1}


# ---- n > 1


def test_the_prompt_of_n_continuations_is_computed_once() -> None:
    says = Says()
    core = make_core(executor=says)
    assert core.add(request("a", num_prompt=7, n=3, max_tokens=2), 0.0) == ("a/0", "a/1", "a/2")
    first = core.step(0.0)
    assert first.num_batched_tokens == 7
    assert [new.seq_id for new in first.tokens] == ["a/0", "a/1", "a/2"]
    sample = says.batches[0].items[0].sample
    assert sample is not None
    assert sample.seq_ids == ("a/0", "a/1", "a/2")
    assert len(set(sample.seeds)) == 3
    assert core.num_running == 3
    second = core.step(1.0)
    assert second.num_batched_tokens == 3
    assert len(says.batches[1].copies) == 2  # two copy, the last writer keeps the block
    assert len(second.finished) == 3
    assert core.counters.computed_tokens == 7 + 3


def test_continuations_that_end_at_once_are_never_forked() -> None:
    core = make_core(executor=Says(a0=[9], a1=[1, 2], a2=[9]), eos_ids=[9])
    core.add(request("a", n=3, max_tokens=2), 0.0)
    output = core.step(0.0)
    assert [(entry.seq_id, entry.reason) for entry in output.finished] == [("a/0", "stop"), ("a/2", "stop")]
    assert core.num_running == 1
    drain(core)


def test_continuations_that_end_at_once_take_no_slot() -> None:
    core = make_core(executor=Says(a1=[9]), eos_ids=[9], seqs=2)
    core.add(request("a", n=3, max_tokens=2), 0.0)
    core.step(0.0)
    assert (core.num_running, core.num_waiting) == (2, 0)
    drain(core)


def test_aborting_before_the_fork_ends_every_continuation() -> None:
    core = make_core()
    core.add(request("a", num_prompt=20, n=3), 0.0)
    core.step(0.0)
    assert [entry.seq_id for entry in core.finish("a/1", "stop")] == ["a/1"]
    finished = core.abort("a")
    assert [entry.seq_id for entry in finished] == ["a/0", "a/2"]
    assert [entry.is_request_done for entry in finished] == [False, True]


def test_forks_beyond_the_cap_are_born_waiting() -> None:
    core = make_core(seqs=2, executor=HashingExecutor())
    core.add(request("a", num_prompt=6, n=4, max_tokens=5, seed=3), 0.0)
    core.add(request("b", num_prompt=6, max_tokens=5, seed=3), 0.0)
    outputs = [core.step(0.0)]
    assert (core.num_running, core.num_waiting) == (2, 3)
    outputs += drain(core)
    for index in range(4):
        prompt = request("a", 6).prompt_ids
        assert tokens_of(outputs, f"a/{index}") == expected_tokens(prompt, derive_seed(3, index), 5, 256)
    order = [entry.seq_id for output in outputs for entry in output.finished]
    assert order.index("b/0") > order.index("a/1")


def test_slots_of_forks_to_come_are_kept_free() -> None:
    core = make_core(seqs=4, tokens=16)
    core.add(request("a", num_prompt=12, n=3, max_tokens=4), 0.0)
    core.add(request("b", num_prompt=2, n=2, max_tokens=4), 0.0)
    assert [entry.seq_id for entry in core.step(0.0).admitted] == ["a/0"]
    assert [entry.seq_id for entry in core.step(1.0).admitted] == []
    drain(core)


# ---- seeds


def test_seeds_follow_from_request_seed_and_index() -> None:
    says = Says()
    core = make_core(executor=says, seed=1)
    core.add(request("a", seed=7, max_tokens=1), 0.0)
    core.add(request("b", max_tokens=1), 0.0, seed=8)
    core.add(request("c", max_tokens=1), 0.0)
    core.add(request("d", max_tokens=1), 0.0)
    drain(core)
    samples = {item.seq_id: item.sample.seeds[0] for batch in says.batches for item in batch.items if item.sample}
    assert samples["a/0"] == derive_seed(7, 0)
    assert samples["b/0"] == derive_seed(8, 0)
    assert samples["c/0"] == derive_seed(derive_seed(1, 2), 0) != samples["d/0"]
    assert all(0 <= seed < 2**63 for seed in samples.values())


# ---- preemption


def test_preempted_text_is_the_same_and_counted() -> None:
    core = make_core(num_blocks=6, executor=HashingExecutor(), max_model_len=24)
    for name in "abc":
        core.add(request(name, num_prompt=6, max_tokens=14, seed=5), 0.0)
    outputs = drain(core)
    assert core.counters.preemptions > 0
    assert core.counters.recomputed_tokens > 0
    assert sum(len(output.preempted) for output in outputs) == core.counters.preemptions
    assert any(entry.is_readmission for output in outputs for entry in output.admitted)
    for name in "abc":
        expected = expected_tokens(request(name, 6).prompt_ids, derive_seed(5, 0), 14, 256)
        assert tokens_of(outputs, f"{name}/0") == expected
    assert [e.seq_id for o in outputs for e in o.finished] == ["a/0", "b/0", "c/0"]


def test_prefix_hits_are_reported_and_misses_explained() -> None:
    core = make_core(tokens=16)
    core.add(request("a", num_prompt=9, max_tokens=1), 0.0)
    first = core.step(0.0)
    assert first.admitted[0].num_cached_tokens == 0
    assert "no block of this prompt is cached" in str(first.admitted[0].miss_reason)
    core.add(Request(request_id="b", prompt_ids=request("a", 9).prompt_ids, params=SamplingParams(max_tokens=1)), 1.0)
    second = core.step(1.0)
    assert second.admitted[0].num_cached_tokens == 8
    assert second.admitted[0].miss_reason is None
    assert second.finished[0].num_cached_tokens == 8
    assert (core.counters.prefix_queried_tokens, core.counters.prefix_hit_tokens) == (18, 8)


def test_a_salt_keeps_prefixes_apart() -> None:
    core = make_core()
    for name, salt in (("a", "x"), ("b", "y"), ("c", "x")):
        params = SamplingParams(max_tokens=1)
        core.add(Request(request_id=name, prompt_ids=range(9), params=params, cache_salt=salt), 0.0)
        drain(core)
    assert core.counters.prefix_hit_tokens == 8
