# SPDX-License-Identifier: Apache-2.0
"""What the machine gives at best, measured: bytes/s read from memory and fp32 FLOP/s. Run as a process, for its thread settings."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

from ziggurat.catalog.peers.process import child_environment
from ziggurat.errors import EngineError

_NUM_REPEATS = 5
_READ_BYTES = 256 << 20
_MATRIX_SIZE = 1536


def measure(threads: int) -> dict[str, float]:
    """``read_bandwidth_bytes_per_s`` and ``fp32_flop_per_s``, in a process held to ``threads``.

    Raises:
        EngineError: the process failed; says what it wrote last.
    """
    command = [sys.executable, "-m", "ziggurat.catalog.peers.probes", str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, env=child_environment(threads), check=False)
    if done.returncode:
        raise EngineError(f"measuring the machine failed with code {done.returncode}: {done.stderr.strip()[-300:]}")
    rates: dict[str, float] = json.loads(done.stdout)
    return rates


def _median_s(work: Callable[[], object]) -> float:
    work()
    times_s = []
    for _ in range(_NUM_REPEATS):
        start_s = time.perf_counter()
        work()
        times_s.append(time.perf_counter() - start_s)
    return statistics.median(times_s)


def main() -> None:
    """Sum a vector far larger than the caches; multiply two matrices."""
    import torch

    torch.set_num_threads(int(sys.argv[1]))
    vector = torch.ones(_READ_BYTES // 4)
    left, right = torch.rand(2, _MATRIX_SIZE, _MATRIX_SIZE).unbind()
    rates = {
        "read_bandwidth_bytes_per_s": _READ_BYTES / _median_s(vector.sum),
        "fp32_flop_per_s": 2 * _MATRIX_SIZE**3 / _median_s(lambda: left @ right),
    }
    print(json.dumps(rates))


if __name__ == "__main__":
    main()
