# SPDX-License-Identifier: Apache-2.0
"""The budget holds in every derived size, and advice in errors works when it is followed."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ziggurat.errors import DoesNotFit
from ziggurat.memory.fit import Fit, SizeRequest, fit, sequence_blocks
from ziggurat.programs.architectures import build_program
from ziggurat.programs.formats import BF16, FP32
from ziggurat.programs.lower import Formats
from ziggurat.units import MIB


def config(**changes: Any) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 1024,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
        **changes,
    }


MIXED = config(architectures=["Qwen2ForCausalLM"], use_sliding_window=True, sliding_window=100, max_window_layers=2)


def solve(raw: dict[str, Any], kv_format: Any = FP32, **request: Any) -> Fit:
    return fit(build_program(raw), Formats(weight=BF16, kv=kv_format), SizeRequest(**request))


@settings(max_examples=60, deadline=None)
@given(
    memory=st.integers(1, 200),
    raw=st.sampled_from([config(), MIXED]),
    block_size=st.sampled_from([1, 8, 16, 48]),
    max_model_len=st.none() | st.integers(1, 4096),
    seqs=st.none() | st.integers(1, 40),
    overhead=st.integers(0, 8 * MIB),
)
def test_a_fit_is_inside_the_budget_and_holds_a_full_sequence(memory, raw, block_size, max_model_len, seqs, overhead):
    try:
        result = solve(
            raw,
            memory_bytes=memory * MIB,
            block_size=block_size,
            max_model_len=max_model_len,
            max_num_seqs=seqs,
            overhead_bytes=overhead,
        )
    except DoesNotFit as error:
        assert error.needed_bytes > error.available_bytes == memory * MIB
        return
    assert result.planned_bytes() <= result.request.usable_bytes < memory * MIB
    limits = result.plan.limits
    assert max_model_len is None or limits.max_model_len == max_model_len
    assert limits.max_num_batched_tokens > limits.max_num_seqs or limits.max_num_seqs == 1
    for count, group in zip(result.num_blocks, result.plan.program.kv_groups(), strict=True):
        assert count >= sequence_blocks(group, limits.max_model_len, limits)
    assert result.largest_batch >= 1
    assert result.longest_context_tokens >= limits.max_model_len


@pytest.mark.parametrize("raw", [config(), MIXED])
def test_following_the_advice_of_the_error_works(raw):
    request = {"memory_bytes": 9 * MIB, "max_model_len": 4096}
    with pytest.raises(DoesNotFit, match="smallest change") as caught:
        solve(raw, **request)
    advice = str(caught.value)
    (memory,) = re.findall(r"raise --memory to (\d+)", advice)
    assert solve(raw, **{**request, "memory_bytes": int(memory)}).largest_batch == 1
    with pytest.raises(DoesNotFit):
        solve(raw, **{**request, "memory_bytes": int(memory) * 99 // 100})
    (length,) = re.findall(r"lower --max-model-len to (\d+)", advice)
    assert solve(raw, **{**request, "max_model_len": int(length)}).plan.limits.max_model_len == int(length)
    with pytest.raises(DoesNotFit):
        solve(raw, **{**request, "max_model_len": int(length) + 16})
    assert ("--kv-cache-dtype bf16" in advice) == _fits_with_half(raw, request)


def _fits_with_half(raw, request):
    try:
        solve(raw, BF16, **request, max_num_batched_tokens=16, max_num_seqs=1)
    except DoesNotFit:
        return False
    return True


def test_a_context_left_open_is_lowered_and_said():
    result = solve(config(), memory_bytes=12 * MIB)
    assert result.is_context_lowered
    assert result.plan.limits.max_model_len < 4096
    assert not solve(config(), memory_bytes=200 * MIB).is_context_lowered


def test_the_megabyte_budget_names_numbers():
    with pytest.raises(DoesNotFit, match=r"does not fit in 1.00 MiB.*weights .*raise --memory to \d+"):
        solve(config(), memory_bytes=MIB)


def test_same_command_same_number_of_blocks():
    assert solve(config(), memory_bytes=100 * MIB) == solve(config(), memory_bytes=100 * MIB)
