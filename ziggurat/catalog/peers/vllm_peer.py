# SPDX-License-Identifier: Apache-2.0
"""vLLM's CPU build in fp32, through its ``LLM``, with prefix caching."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from ziggurat.catalog.peers.registry import PEERS, Job, Peer, not_installed


@PEERS.register("vllm:fp32")
class VllmFp32(Peer):
    """``vllm.LLM`` on token ids."""

    engine, format = "vllm", "fp32"
    _llm: Any

    @classmethod
    def absent(cls) -> str | None:
        return not_installed("vllm")

    def open(self, job: Job) -> None:
        self._llm = import_module("vllm").LLM(
            str(job.folder),
            dtype="float32",
            skip_tokenizer_init=True,
            max_num_seqs=job.max_num_seqs,
            max_model_len=job.max_model_len,
            enable_prefix_caching=True,
        )

    def generate(self, prompts: Sequence[Sequence[int]], num_tokens: int) -> list[list[int]]:
        params = import_module("vllm").SamplingParams(
            temperature=0.0, max_tokens=num_tokens, ignore_eos=True, detokenize=False
        )
        inputs = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        return [list(result.outputs[0].token_ids) for result in self._llm.generate(inputs, params, use_tqdm=False)]
