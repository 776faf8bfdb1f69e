# SPDX-License-Identifier: Apache-2.0
"""Budget and cap from step times, on lines and stairs with known answers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ziggurat.errors import ConfigError
from ziggurat.scheduling.calibration import Calibration, StepSample, calibrate, fit_line

SIZES = (16, 32, 64, 128, 256)


def line(fixed_s: float, slope_s: float, *, sizes: tuple[int, ...] = SIZES) -> list[StepSample]:
    return [StepSample(num_tokens=size, seconds=fixed_s + slope_s * size) for size in sizes]


def of(samples: list[StepSample], **options) -> Calibration:  # type: ignore[no-untyped-def]
    return calibrate(samples, **{"max_num_seqs": 32, "row_tile": 16, **options})


def test_the_knee_is_where_fixed_and_growing_cost_meet() -> None:
    assert of(line(0.010, 0.0005)).knee_tokens == pytest.approx(20)


def test_one_disturbed_sample_does_no_harm() -> None:
    samples = line(0.010, 0.0005)
    samples[3] = StepSample(num_tokens=128, seconds=0.9)
    fixed_s, slope_s = fit_line(samples)
    assert slope_s == pytest.approx(0.0005, rel=0.3)
    assert fixed_s == pytest.approx(0.010, rel=0.5)


def test_the_budget_is_the_largest_aligned_step_below_the_target() -> None:
    """10 ms + 0.5 ms a token: 60 ms is 100 tokens, 96 with tiles of 16."""
    found = of(line(0.010, 0.0005), tbt_target_s=0.060)
    assert (found.max_num_batched_tokens, found.max_num_seqs) == (96, 32)
    assert found.step_s == pytest.approx(0.058)
    assert of(line(0.010, 0.0005), tbt_target_s=0.060, row_tile=1).max_num_batched_tokens in (99, 100)
    assert of(line(0.010, 0.0005), tbt_target_s=9.0).max_num_batched_tokens == 256, "never beyond what was measured"


def test_without_a_target_the_budget_reaches_nine_tenths_of_the_throughput() -> None:
    """A knee of 16 tokens: 9 * 16 = 144 tokens cost 10 % of fixed work."""
    assert of(line(0.008, 0.0005)).max_num_batched_tokens == 144
    assert of(line(0.008, 0.0)).max_num_batched_tokens == 256


def test_the_cap_follows_from_the_budget() -> None:
    assert of(line(0.010, 0.0005), tbt_target_s=0.030).max_num_seqs == 16
    assert of(line(0.010, 0.0005), tbt_target_s=0.030, max_num_seqs=4).max_num_seqs == 4


def test_a_target_nobody_meets_and_a_budget_below_the_sequences() -> None:
    with pytest.raises(ConfigError, match="no step keeps a time between tokens of 5 ms: one of 16 tokens takes 18 ms"):
        of(line(0.010, 0.0005), tbt_target_s=0.005)
    with pytest.raises(
        ConfigError, match="step of 32 tokens .* max_num_seqs 40 needs steps of 41: lower --max-num-seqs to 31"
    ):
        of(line(0.010, 0.0005), tbt_target_s=0.030, max_num_seqs=40, is_max_num_seqs_fixed=True)


@given(
    seconds=st.lists(st.floats(1e-4, 1.0), min_size=2, max_size=5),
    target_s=st.floats(1e-4, 1.0),
    seqs=st.integers(1, 64),
)
def test_any_times_give_a_budget_that_a_core_accepts(seconds: list[float], target_s: float, seqs: int) -> None:
    samples = [StepSample(num_tokens=size, seconds=each) for size, each in zip(SIZES, seconds, strict=False)]
    try:
        found = of(samples, tbt_target_s=target_s, max_num_seqs=seqs)
    except ConfigError:
        assert seconds[0] > target_s
        return
    assert found.max_num_seqs + 1 <= found.max_num_batched_tokens <= samples[-1].num_tokens
    assert found.max_num_batched_tokens % 16 == 0
    assert 1 <= found.max_num_seqs <= seqs
