# SPDX-License-Identifier: Apache-2.0
"""Traces as the workload of ``bench``: any format under timed_trace, or the one that is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.null.workload.traces import samples
from ziggurat.cli.bench.requests import DATASETS, WorkloadOptions
from ziggurat.errors import SchemaError
from ziggurat.workload.arrivals import LENGTHS
from ziggurat.workload.traces.formats import TRACE_FORMATS


@pytest.mark.parametrize("name", samples.ALL)
def test_every_format_is_a_workload(tmp_path: Path, name: str) -> None:
    expected, file_name, text = samples.ALL[name]
    path = samples.write(tmp_path, text, file_name)
    by_any, by_name = (
        WorkloadOptions(dataset_name=each, dataset_path=path).arrivals(None) for each in ("timed_trace", expected)
    )
    assert by_any == by_name and by_any


def test_a_named_format_is_insisted_on(tmp_path: Path) -> None:
    path = samples.write(tmp_path, samples.VIDUR)
    with pytest.raises(SchemaError, match="missing column 'Timestamp'"):
        WorkloadOptions(dataset_name="burstgpt", dataset_path=path).arrivals(None)


def test_every_length_distribution_and_format_can_be_asked_for() -> None:
    assert {*LENGTHS.names(), *TRACE_FORMATS.names(), "random", "timed_trace"} == set(DATASETS)
    for name in LENGTHS.names():
        arrivals = WorkloadOptions(dataset_name=name, num_prompts=5).arrivals(900)
        assert len(arrivals) == 5 and all(each.prompt_len + each.max_new <= 900 for each in arrivals)
