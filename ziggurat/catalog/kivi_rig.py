# SPDX-License-Identifier: Apache-2.0
"""What the claims about KIVI are measured with: the embedded model in several KV formats, its keys, and decode attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ziggurat.catalog.kv_rig import AttentionShape, DecodeAttention, interleaved_seconds, torch_attention
from ziggurat.catalog.quality.figures import paired_difference
from ziggurat.catalog.quality.measure import QualityWork, Variant, run_variant
from ziggurat.workload import prose
from ziggurat.workload.tasks.retrieval import TASKS


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """One KV format against fp32.

    Attributes:
        perplexity_ratio: over held-out prose.
        difference, low: of accuracy over all items, and the lower bound of its 95 % interval.
        by_task: differences by task.
        num_items: items of all tasks.
    """

    perplexity_ratio: float
    difference: float
    low: float
    by_task: Mapping[str, float]
    num_items: int


class KiviRig:
    """See the module."""

    def quality(self, formats: Sequence[str], *, items: int, length: int, text_tokens: int) -> dict[str, Quality]:
        """Every task with so many items, and that much prose, in fp32 KV and in each format."""
        from ziggurat.engine.llm import LLM

        rng, text = np.random.default_rng(11), ""
        while len(text) < 6 * text_tokens:
            text += prose.document(rng, "held_out") + "\n"
        work = QualityWork(
            text=text, num_tokens=text_tokens, tasks=tuple(TASKS.names()), lengths=(length,), items=items
        )
        outcomes = {}
        for name in ("fp32", *formats):
            with LLM("embedded", memory="1GiB", **Variant(weights="bfloat16", kv=name).settings) as llm:
                outcomes[name] = run_variant(llm, work, lambda num_done, num_steps, what: None)
        reference = outcomes.pop("fp32")
        found = {}
        for name, outcome in outcomes.items():
            keys = list(outcome.answers)
            before = [right for key in keys for right in reference.answers[key]]
            pair = paired_difference(before, [right for key in keys for right in outcome.answers[key]])
            by_task = {
                task: paired_difference(reference.answers[task, size], outcome.answers[task, size])["difference"]
                for task, size in keys
            }
            assert outcome.scores is not None and reference.scores is not None
            found[name] = Quality(
                perplexity_ratio=outcome.scores.perplexity / reference.scores.perplexity,
                difference=pair["difference"],
                low=pair["difference_low"],
                by_task=by_task,
                num_items=len(before),
            )
        return found

    def is_exact(self, name: str) -> bool:
        """Whether answers and log-probabilities of a format are bit-equal in one chunk, in small ones, and behind a cached prefix."""
        from ziggurat.engine.llm import LLM
        from ziggurat.scheduling.sampling import SamplingParams

        prompt = [5 + (17 * place * place) % 900 for place in range(300)]
        params = SamplingParams(temperature=0, max_tokens=40, logprobs=1, ignore_eos=True)
        found = []
        for tokens, times in ((512, 1), (48, 1), (512, 2)):
            with LLM("embedded", memory="256MiB", kv_cache_dtype=name, max_num_batched_tokens=tokens) as llm:
                for _ in range(times):
                    (output,) = llm.generate([prompt], params)
                found.append((output.outputs[0].token_ids, output.outputs[0].logprobs))
        return found[0] == found[1] == found[2]

    def keys(self) -> NDArray[np.float32]:
        """Keys of the embedded model's layers over 512 tokens of prose: [layers * KV heads, tokens, head size]."""
        import torch

        from ziggurat.engine.resolve import EMBEDDED_FOLDER
        from ziggurat.programs import ops
        from ziggurat.training.export import load_exported
        from ziggurat.training.tokenizer import encode

        model, tokenizer = load_exported(EMBEDDED_FOLDER)
        rng = np.random.default_rng(12)
        ids: list[int] = []
        while len(ids) < 512:
            ids += encode(tokenizer, " " + prose.document(rng, "held_out"))
        found: list[Any] = []

        def keep(op: ops.Op, value: torch.Tensor) -> None:
            if isinstance(op, ops.Rope) and op.num_heads == model.program.kv_groups()[0].num_kv_heads:
                found.append(value.view(512, op.num_heads, op.head_dim).transpose(0, 1).numpy())

        with torch.no_grad():
            model(torch.tensor([ids[:512]]), torch.tensor([0]), observe=keep)
        return np.concatenate(found)

    def seconds(self, shape: AttentionShape, formats: Sequence[str], *, rounds: int) -> dict[str, float]:
        """Median seconds of a decode step's attention in each format, and in ``torch`` over dense fp32."""
        calls: dict[str, Any] = {name: DecodeAttention(shape, name) for name in formats}
        return interleaved_seconds({**calls, "torch": torch_attention(shape)}, rounds)

    def largest_batch(self, name: str, num_tokens: int, memory_bytes: int) -> int:
        """Sequences of that length that the embedded model's engine holds in that budget."""
        from ziggurat.engine.config import EngineConfig
        from ziggurat.engine.sizing import open_model, size

        config = EngineConfig(kv_cache_dtype=name, max_model_len=num_tokens)
        return size(config, open_model(config), memory_bytes).largest_batch

    def pool_bytes(self, name: str, num_tokens: int) -> tuple[int, int, int]:
        """Bytes of a sequence of so many tokens in the embedded model's engine, tail included; what the formula says; and bf16's."""
        from ziggurat.engine.config import EngineConfig
        from ziggurat.engine.sizing import open_model, size
        from ziggurat.programs.formats import BF16, KV_FORMATS
        from ziggurat.quantization.kivi import cache_bytes

        config = EngineConfig(kv_cache_dtype=name)
        plan = size(config, open_model(config), 1 << 30).plan
        whole, tail = plan.program.kv_groups()
        held = num_tokens // 32 * plan.block_bytes(whole) + (plan.block_bytes(tail) if num_tokens % 32 else 0)
        values = whole.values_per_token()
        return held, cache_bytes(num_tokens, values, KV_FORMATS[name]), BF16.num_bytes((num_tokens, values))
