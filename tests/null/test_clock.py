# SPDX-License-Identifier: Apache-2.0
"""Clocks: who moves them, and what a sleep does."""

from __future__ import annotations

import time

from ziggurat.clock import SkippingClock


def test_a_skipping_clock_counts_work_and_jumps_over_waiting() -> None:
    clock = SkippingClock()
    start_s, real_s = clock.now(), time.monotonic()
    clock.sleep_until(start_s + 1000)
    assert 1000 <= clock.now() - start_s < 1010
    assert time.monotonic() - real_s < 10
    clock.sleep_until(start_s)
    assert clock.now() - start_s >= 1000, "it never goes back"
    before_s = clock.now()
    time.sleep(0.01)
    assert clock.now() - before_s >= 0.01
