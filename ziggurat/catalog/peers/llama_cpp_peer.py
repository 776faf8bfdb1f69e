# SPDX-License-Identifier: Apache-2.0
"""llama-cpp-python in F16: listed, so that nobody wonders; it reads GGUF files only, and Ziggurat writes none yet."""

from __future__ import annotations

from collections.abc import Sequence

from ziggurat.catalog.peers.registry import PEERS, Job, Peer, not_installed
from ziggurat.errors import UnsupportedFeature

_REASON = "needs a GGUF file, and GGUF export is not built yet"


@PEERS.register("llama-cpp-python:f16")
class LlamaCppF16(Peer):
    """Always absent."""

    engine, format = "llama-cpp-python", "f16"

    @classmethod
    def absent(cls) -> str | None:
        missing = not_installed("llama_cpp")
        return f"{missing}; {_REASON}" if missing else _REASON

    def open(self, job: Job) -> None:
        raise UnsupportedFeature(f"llama-cpp-python {_REASON}", feature="gguf")

    def generate(self, prompts: Sequence[Sequence[int]], num_tokens: int) -> list[list[int]]:
        raise UnsupportedFeature(f"llama-cpp-python {_REASON}", feature="gguf")
