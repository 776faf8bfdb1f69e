# SPDX-License-Identifier: Apache-2.0
"""300 schemas of varied features on the embedded model: every finished answer is valid, at least nine of ten end by themselves."""

from __future__ import annotations

import pytest

from benchmarks.structured_output import validity
from ziggurat import LLM


@pytest.mark.parametrize(("max_tokens", "temperature", "seed"), [(512, 1.0, 0), (128, 0.0, 7)])
def test_answers_follow_300_schemas(max_tokens: int, temperature: float, seed: int) -> None:
    with LLM("embedded", memory="512MiB", max_num_seqs=8) as llm:
        found = validity(llm, 300, max_tokens, temperature, seed)
    assert found["refused"] == 0 and found["invalid"] == 0, found
    assert found["finished_by_stop"] + found["finished_by_length"] == 300
    assert found["finished_by_stop"] >= 270, found
