# SPDX-License-Identifier: Apache-2.0
"""An executor over a checkpoint without engine or KV store: block tables are dealt by hand, scattered on purpose."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from ziggurat import kernels
from ziggurat.engine.config import EngineConfig
from ziggurat.engine.executor import Memory, PlanExecutor
from ziggurat.engine.sizing import open_model
from ziggurat.engine.weights import read_checkpoint, weight_views
from ziggurat.memory.arena import Arena
from ziggurat.memory.kv import KVView
from ziggurat.programs.formats import FP32, FormatSpec
from ziggurat.programs.lower import Formats, lower
from ziggurat.programs.plan import Limits
from ziggurat.scheduling.protocol import Batch, BatchItem, SampleRequest
from ziggurat.scheduling.sampling import SamplingParams

LIMITS = Limits(max_model_len=128, max_num_seqs=4, max_num_batched_tokens=128, block_size=8)
GREEDY = SamplingParams(temperature=0, logprobs=3)


class Rig:
    """Loads a folder and runs sequences by name; each has its own blocks in every group."""

    def __init__(
        self,
        folder: Path,
        *,
        backend: str = "torch",
        weight: FormatSpec | None = None,
        kv: FormatSpec = FP32,
        limits: Limits = LIMITS,
    ) -> None:
        source = open_model(EngineConfig(model=str(folder)))
        self.program, tensors = source.program, source.tensors
        self.plan = lower(self.program, Formats(weight=weight or source.formats.weight, kv=kv), limits)
        ops = kernels.select(backend)
        self.weights = Arena(self.plan.weight_bytes, "weights")
        views = weight_views(self.plan, self.weights)
        read_checkpoint(self.plan, views, tensors, ops)
        self.blocks_per_seq = limits.max_model_len // limits.block_size
        num_blocks = self.blocks_per_seq * limits.max_num_seqs
        self.memory = Memory(
            weights=views,
            workspace=Arena(self.plan.workspace_bytes, "workspace"),
            tables=Arena(self.plan.table_bytes, "tables"),
            pools=[Arena(num_blocks * self.plan.block_bytes(g), f"kv {g.index}") for g in self.program.kv_groups()],
        )
        self.executor = PlanExecutor(self.plan, self.memory, ops)
        self.step = 0
        generator = torch.Generator().manual_seed(5)
        self._deck = torch.randperm(num_blocks, generator=generator).tolist()
        self._hands: dict[str, list[int]] = {}

    def item(self, seq: str, tokens: Sequence[int], start: int, *, params: SamplingParams | None = GREEDY) -> BatchItem:
        """Tokens of a sequence at positions from ``start`` on; sampled after the last unless params is None."""
        if seq not in self._hands:
            self._hands[seq], self._deck = self._deck[: self.blocks_per_seq], self._deck[self.blocks_per_seq :]
        tables = tuple(tuple(self._hands[seq]) for _ in self.program.kv_groups())
        view = KVView(tables=tables, num_tokens=start + len(tokens), block_size=self.plan.limits.block_size)
        sample = None
        if params is not None:
            sample = SampleRequest(
                seq_ids=(seq,), seeds=(7,), params=params, prompt_ids=tokens, output_ids=(), eos_ids=()
            )
        return BatchItem(seq_id=seq, token_ids=tokens, start=start, kv=view, sample=sample)

    def logits(self, *items: BatchItem) -> torch.Tensor:
        """Logits of the sampled rows, as a copy."""
        self.step += 1
        return self.executor.forward(Batch(step=self.step, copies=(), items=items))[0].clone()
