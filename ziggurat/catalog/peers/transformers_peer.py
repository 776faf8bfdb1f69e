# SPDX-License-Identifier: Apache-2.0
"""Hugging Face transformers in fp32: one batch, its own KV cache, logits of the last position only.

The greedy loop is written out, because ``generate`` adds bookkeeping per token that would count against it.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from ziggurat.catalog.peers.registry import PEERS, Job, Peer, not_installed


@PEERS.register("transformers:fp32")
class TransformersFp32(Peer):
    """``AutoModelForCausalLM`` with its default attention."""

    engine, format = "transformers", "fp32"
    _model: Any
    _cache_name: str

    @classmethod
    def absent(cls) -> str | None:
        return not_installed("transformers", "torch")

    def open(self, job: Job) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(job.threads)
        self._model = AutoModelForCausalLM.from_pretrained(job.folder, dtype=torch.float32).eval()
        # Releases before 5.24 say past_key_values, for the argument and for the output alike.
        names = inspect.signature(self._model.forward).parameters
        self._cache_name = "cache" if "cache" in names else "past_key_values"

    def generate(self, prompts: Sequence[Sequence[int]], num_tokens: int) -> list[list[int]]:
        import torch

        outputs, cache = [], None
        with torch.inference_mode():
            ids = torch.tensor([list(prompt) for prompt in prompts])
            for _ in range(num_tokens):
                step = self._model(input_ids=ids, **{self._cache_name: cache}, use_cache=True, logits_to_keep=1)
                ids, cache = step.logits[:, -1].argmax(-1, keepdim=True), step[self._cache_name]
                outputs.append(ids)
            return [[int(token) for token in row] for row in torch.cat(outputs, 1).tolist()]
