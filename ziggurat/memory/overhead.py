# SPDX-License-Identifier: Apache-2.0
"""The calibrated lease: bytes of an engine that are in no arena of ours.

Measured on Linux with tokenizers 0.23 (Pss before and after): ``Tokenizer.from_file`` takes 8.5 to 8.6 times the size of tokenizer.json
(32,000 and 150,000 entries), and encoding long texts 5 to 14 MiB more for its word cache. The rest of the constant is Python objects
of requests, the HTTP layer and allocator slack; ``benchmarks/planned_memory.py`` checks the sum against reality.
"""

from __future__ import annotations

from pathlib import Path

from ziggurat.units import MIB

BASE_BYTES = 24 * MIB
TOKENIZER_FACTOR = 9


def overhead_bytes(folder: Path) -> int:
    """Overhead of an engine for the model in that folder; only file sizes are read."""
    tokenizer = folder / "tokenizer.json"
    return overhead_of(tokenizer.stat().st_size if tokenizer.is_file() else 0)


def overhead_of(vocabulary_bytes: int) -> int:
    """Overhead of an engine whose vocabulary takes that much on disk; a GGUF header is taken to be as dense as tokenizer.json."""
    return BASE_BYTES + TOKENIZER_FACTOR * vocabulary_bytes
