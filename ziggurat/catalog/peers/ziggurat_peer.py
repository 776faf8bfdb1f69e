# SPDX-License-Identifier: Apache-2.0
"""Ziggurat itself, through `LLM`, with its defaults: planner, token budget, prefix cache, kernels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from ziggurat.catalog.peers.registry import PEERS, Job, Peer
from ziggurat.programs.architectures import build_program

if TYPE_CHECKING:
    from ziggurat.engine.llm import LLM

_SLACK_BYTES = 512 << 20


class _Ziggurat(Peer):
    engine = "ziggurat"
    dtype: ClassVar[str]
    num_bytes: ClassVar[int]
    quantization: ClassVar[str] = "none"
    _llm: LLM

    @classmethod
    def absent(cls) -> str | None:
        return None

    def open(self, job: Job) -> None:
        from ziggurat.engine.llm import LLM

        self._llm = LLM(
            str(job.folder),
            memory=self._memory_bytes(job),
            dtype=self.dtype,
            quantization=self.quantization,
            threads=job.threads,
            max_num_seqs=job.max_num_seqs,
            max_model_len=job.max_model_len,
        )

    def generate(self, prompts: Sequence[Sequence[int]], num_tokens: int) -> list[list[int]]:
        from ziggurat.scheduling.sampling import SamplingParams

        params = SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)
        return [result.outputs[0].token_ids for result in self._llm.generate(prompts, params)]

    def _memory_bytes(self, job: Job) -> int:
        """Weights (as if none were quantized), KV and slack. By default the pool would take the whole machine, on which the other
        peers live as well."""
        config = json.loads((job.folder / "config.json").read_text(encoding="utf-8"))
        num_weights = 0
        for spec in build_program(config).weights.values():
            if spec.tied_to is None:
                size = 1
                for extent in spec.shape:
                    size *= extent
                num_weights += size
        head_size: int = config["hidden_size"] // config["num_attention_heads"]
        kv_per_token: int = 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * head_size
        return (
            int(1.05 * num_weights * self.num_bytes) + job.max_kv_tokens * kv_per_token * self.num_bytes + _SLACK_BYTES
        )


@PEERS.register("ziggurat:fp32")
class ZigguratFp32(_Ziggurat):
    """Weights and KV in fp32: the format that peers in fp32 are compared with."""

    format, dtype, num_bytes = "fp32", "float32", 4


@PEERS.register("ziggurat:bf16")
class ZigguratBf16(_Ziggurat):
    """Weights and KV in bf16."""

    format, dtype, num_bytes = "bf16", "bfloat16", 2


@PEERS.register("ziggurat:q8_0")
class ZigguratQ8(_Ziggurat):
    """Weights in Q8_0 (8.5 bits, embedding and head included), activations in int8 while running, KV in bf16."""

    format, dtype, num_bytes, quantization = "q8_0", "bfloat16", 2, "q8_0"


@PEERS.register("ziggurat:q4_0")
class ZigguratQ4(_Ziggurat):
    """Weights in Q4_0 (4.5 bits, embedding and head included), activations in int8 while running, KV in bf16."""

    format, dtype, num_bytes, quantization = "q4_0", "bfloat16", 2, "q4_0"
