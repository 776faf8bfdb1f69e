# SPDX-License-Identifier: Apache-2.0
"""OpenVINO in fp32, through optimum-intel, which converts the checkpoint when it opens it."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from ziggurat.catalog.peers.registry import PEERS, Job, Peer, not_installed


@PEERS.register("openvino:fp32")
class OpenvinoFp32(Peer):
    """``OVModelForCausalLM`` with inference precision fp32."""

    engine, format = "openvino", "fp32"
    _model: Any

    @classmethod
    def absent(cls) -> str | None:
        return not_installed("openvino", "optimum")

    def open(self, job: Job) -> None:
        settings = {
            "INFERENCE_NUM_THREADS": job.threads,
            "INFERENCE_PRECISION_HINT": "f32",
            "KV_CACHE_PRECISION": "f32",
        }
        model = import_module("optimum.intel").OVModelForCausalLM
        self._model = model.from_pretrained(job.folder, export=True, load_in_8bit=False, ov_config=settings)

    def generate(self, prompts: Sequence[Sequence[int]], num_tokens: int) -> list[list[int]]:
        import torch

        ids = torch.tensor([list(prompt) for prompt in prompts])
        output = self._model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            min_new_tokens=num_tokens,
            max_new_tokens=num_tokens,
            pad_token_id=0,
        )
        return [[int(token) for token in row] for row in output[:, ids.shape[1] :].tolist()]
