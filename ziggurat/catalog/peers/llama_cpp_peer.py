# SPDX-License-Identifier: Apache-2.0
"""llama.cpp through llama-cpp-python: F16 and Q8_0 files of our own export, and Q4_0 by llama.cpp's quantizer.

One KV cache for all sequences, in f16 as is llama.cpp's default, and what prompts begin with alike is computed once, as its server does.
Q4_0 keeps llama.cpp's own choice of types for embeddings and output.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ziggurat.catalog.peers.registry import PEERS, Job, Peer, not_installed

if TYPE_CHECKING:
    from ziggurat.catalog.peers.llama_session import LlamaSession


class _LlamaCpp(Peer):
    engine = "llama-cpp-python"
    _session: LlamaSession

    @classmethod
    def absent(cls) -> str | None:
        return not_installed("llama_cpp", "gguf")

    def open(self, job: Job) -> None:
        from ziggurat.catalog.peers.llama_files import gguf_file
        from ziggurat.catalog.peers.llama_session import LlamaSession

        self._session = LlamaSession(
            gguf_file(job.folder, self.format, job.threads),
            threads=job.threads,
            num_tokens=job.max_kv_tokens,
            num_sequences=job.max_num_seqs,
        )

    def generate(self, prompts: Sequence[Sequence[int]], num_tokens: int) -> list[list[int]]:
        from ziggurat.catalog.peers.llama_session import greedy

        return greedy(self._session, prompts, num_tokens)


@PEERS.register("llama-cpp-python:f16")
class LlamaCppF16(_LlamaCpp):
    """Matrices in F16."""

    format = "f16"


@PEERS.register("llama-cpp-python:q8_0")
class LlamaCppQ8(_LlamaCpp):
    """Matrices in Q8_0: 8.5 bits per weight."""

    format = "q8_0"


@PEERS.register("llama-cpp-python:q4_0")
class LlamaCppQ4(_LlamaCpp):
    """Matrices in Q4_0: 4.5 bits per weight."""

    format = "q4_0"
