# SPDX-License-Identifier: Apache-2.0
"""Peers that load nothing: one that works, one that is not there, and one for each way to fail."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from typing import ClassVar

from ziggurat.catalog.peers.registry import Job, Peer
from ziggurat.catalog.peers.shapes import SHAPES

TINY = SHAPES["135m"] | {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


class Works(Peer):
    engine, format = "works", "fp32"
    surplus: ClassVar[int] = 0

    @classmethod
    def absent(cls) -> str | None:
        return None

    def open(self, job: Job) -> None:
        print(f"a banner on standard output, {job.folder}")

    def generate(self, prompts: Sequence[Sequence[int]], num_tokens: int) -> list[list[int]]:
        # Well above what a busy machine adds, because differences of these times are taken.
        time.sleep(1e-2 * num_tokens)
        return [[7] * (num_tokens + self.surplus) for _ in prompts]


class Missing(Works):
    engine = "missing"

    @classmethod
    def absent(cls) -> str | None:
        return "not installed: missing"


class SaysTooMuch(Works):
    engine, surplus = "says-too-much", 1


class CannotOpen(Works):
    engine = "cannot-open"

    def open(self, job: Job) -> None:
        raise ValueError(f"no kernels for {job.threads} threads")


class Dies(Works):
    engine = "dies"

    def generate(self, prompts: Sequence[Sequence[int]], num_tokens: int) -> list[list[int]]:
        if len(prompts) > 1:
            print("illegal instruction", file=sys.stderr, flush=True)
            os._exit(4)
        return super().generate(prompts, num_tokens)


class Hangs(Works):
    engine = "hangs"

    def generate(self, prompts: Sequence[Sequence[int]], num_tokens: int) -> list[list[int]]:
        time.sleep(600)
        return []
