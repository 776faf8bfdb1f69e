# SPDX-License-Identifier: Apache-2.0
"""One step of a toy model before the baseline is measured: thread pools, kernels and libraries are there afterwards, the toy is not."""

from __future__ import annotations

import gc

from ziggurat.engine.executor import Memory, PlanExecutor
from ziggurat.engine.weights import fill_random, weight_views
from ziggurat.kernels import KernelOps
from ziggurat.memory.arena import Arena
from ziggurat.memory.kv import KVView
from ziggurat.programs.architectures import build_program
from ziggurat.programs.formats import BF16
from ziggurat.programs.lower import Formats, lower
from ziggurat.programs.plan import Limits
from ziggurat.scheduling.protocol import Batch, BatchItem, SampleRequest
from ziggurat.scheduling.sampling import SamplingParams

_TOY = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
}
_LIMITS = Limits(max_model_len=64, max_num_seqs=2, max_num_batched_tokens=64)


def warm_up(ops: KernelOps) -> None:
    """Load, prefill and sample a toy model with these kernels."""
    plan = lower(build_program(_TOY), Formats(weight=BF16, kv=BF16), _LIMITS)
    (group,) = plan.program.kv_groups()
    with (
        Arena(plan.weight_bytes, "warm-up weights") as weights,
        Arena(plan.workspace_bytes, "warm-up workspace") as workspace,
        Arena(plan.table_bytes, "warm-up tables") as tables,
        Arena(4 * plan.block_bytes(group), "warm-up KV") as pool,
    ):
        views = weight_views(plan, weights)
        fill_random(plan, views, ops, seed=0)
        memory = Memory(weights=views, workspace=workspace, tables=tables, pools=[pool])
        executor = PlanExecutor(plan, memory, ops)
        executor.run(Batch(step=0, copies=(), items=(_item(),)))
        del executor, memory, views
    gc.collect()


def _item() -> BatchItem:
    prompt = list(range(48))
    sample = SampleRequest(
        seq_ids=("warm-up",),
        seeds=(0,),
        params=SamplingParams(top_p=0.9, logprobs=1),
        prompt_ids=prompt,
        output_ids=(),
        eos_ids=(),
    )
    view = KVView(tables=((0, 1, 2),), num_tokens=len(prompt), block_size=_LIMITS.block_size)
    return BatchItem(seq_id="warm-up", token_ids=prompt, start=0, kv=view, sample=sample)
