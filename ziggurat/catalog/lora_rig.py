# SPDX-License-Identifier: Apache-2.0
"""One engine with many adapters, served together or one after the other merged into its weights, as PEFT would."""

from __future__ import annotations

import json
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from ziggurat.catalog.engine_rig import LLAMA_26M
from ziggurat.scheduling.sampling import SamplingParams

if TYPE_CHECKING:
    from torch import Tensor

    from ziggurat.engine.engine import Engine

RANKS = (8, 16, 32, 64)
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
MAX_NUM_SEQS = 32
ROUNDS = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterRequest:
    """One request: an adapter's number (None: the base model), a prompt and the length of its text."""

    adapter: int | None
    prompt_ids: tuple[int, ...]
    output_tokens: int


def zipf_requests(count: int, num_adapters: int, seed: int) -> list[AdapterRequest]:
    """Requests with lengths uniform in 8..64, the same for any number of adapters, and adapters by Zipf's law."""
    lengths, chooser = random.Random(seed), random.Random(seed + 1)
    weights = [1 / (rank + 1) for rank in range(num_adapters)]
    return [
        AdapterRequest(
            adapter=chooser.choices(range(num_adapters), weights)[0],
            prompt_ids=tuple(lengths.randrange(5, 4000) for _ in range(lengths.randint(8, 64))),
            output_tokens=lengths.randint(8, 64),
        )
        for _ in range(count)
    ]


class LoraRig:
    """See the module. Owns engine and files.

    Args:
        num_adapters: folders that are written and registered; of 16 different contents, whose names do not tell.
        rank: of all of them; None takes 8, 16, 32 and 64 in turn.
    """

    def __init__(self, num_adapters: int, *, rank: int | None = None, shape: Mapping[str, Any] = LLAMA_26M) -> None:
        from ziggurat.engine.config import EngineConfig
        from ziggurat.engine.engine import Engine

        self._exit = ExitStack()
        self._folder = Path(self._exit.enter_context(TemporaryDirectory()))
        self._shape, self._rank = shape, rank
        model = self._folder / "model"
        model.mkdir()
        (model / "config.json").write_text(json.dumps(dict(shape)))
        config = EngineConfig(
            model=str(model),
            load_format="dummy",
            memory="1GiB",
            max_model_len=256,
            max_num_seqs=MAX_NUM_SEQS,
            max_queued_requests=100_000,
            enable_prefix_caching=False,
        )
        self.engine: Engine = self._exit.enter_context(Engine.load(config))
        self._num_runs = 0
        for number in range(num_adapters):
            self.engine.load_lora(f"a{number}", self._adapter(number))

    def serve(self, requests: Sequence[AdapterRequest]) -> float:
        """Seconds for all requests, added at once."""
        self._num_runs += 1
        waiting = [(f"{self._num_runs}/{index}", each) for index, each in enumerate(requests)]
        started_s = time.perf_counter()
        while waiting or self.engine.has_work:
            while waiting and self._add(*waiting[0]):
                waiting.pop(0)
            for output in self.engine.step():
                assert output.error is None, output.error
        return time.perf_counter() - started_s

    def serve_swapping(self, requests: Sequence[AdapterRequest]) -> float:
        """Seconds for all requests when one adapter at a time is merged into the weights: all its requests together, then the next."""
        by_adapter: dict[int, list[AdapterRequest]] = {}
        for each in requests:
            assert each.adapter is not None
            plain = AdapterRequest(adapter=None, prompt_ids=each.prompt_ids, output_tokens=each.output_tokens)
            by_adapter.setdefault(each.adapter, []).append(plain)
        started_s = time.perf_counter()
        for number, group in by_adapter.items():
            restore = self._merge(number)
            self.serve(group)
            restore()
        return time.perf_counter() - started_s

    def close(self) -> None:
        """Give everything back."""
        self._exit.close()

    def _add(self, request_id: str, asked: AdapterRequest) -> bool:
        from ziggurat.engine.types import GenerateRequest
        from ziggurat.errors import QueueFull

        params = SamplingParams(max_tokens=asked.output_tokens, ignore_eos=True)
        name = "" if asked.adapter is None else f"a{asked.adapter}"
        request = GenerateRequest(request_id=request_id, prompt_ids=asked.prompt_ids, params=params, adapter=name)
        try:
            self.engine.add(request)
        except QueueFull:
            return False
        return True

    def _adapter(self, number: int) -> Path:
        import torch
        from safetensors.torch import save_file

        rank = self._rank or RANKS[number % len(RANKS)]
        content = number % (4 * len(RANKS))
        folder = self._folder / f"adapter{content}"
        if folder.exists():
            return folder
        folder.mkdir()
        noise = torch.Generator().manual_seed(content)
        hidden, heads = self._shape["hidden_size"], self._shape["num_attention_heads"]
        kv = hidden // heads * self._shape["num_key_value_heads"]
        outs = {"q_proj": hidden, "k_proj": kv, "v_proj": kv, "o_proj": hidden}
        tensors = {}
        for layer in range(self._shape["num_hidden_layers"]):
            for target in TARGETS:
                module = f"base_model.model.model.layers.{layer}.self_attn.{target}"
                tensors[f"{module}.lora_A.weight"] = torch.randn(rank, hidden, generator=noise) * hidden**-0.5
                tensors[f"{module}.lora_B.weight"] = torch.randn(outs[target], rank, generator=noise) * 0.02
        save_file({name: tensor.bfloat16() for name, tensor in tensors.items()}, folder / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": list(TARGETS), "bias": "none"}
        (folder / "adapter_config.json").write_text(json.dumps(config))
        return folder

    def _merge(self, number: int) -> Callable[[], None]:
        """Add an adapter to the packed weights; returns what puts the old ones back."""
        import torch
        from safetensors.torch import load_file

        from ziggurat import kernels
        from ziggurat.engine.weights import weight_views

        updates = load_file(self._adapter(number) / "adapter_model.safetensors")
        ops, views = kernels.select("auto"), weight_views(self.engine.fit.plan, self.engine.resources.weights)
        kept: list[tuple[Tensor, Tensor]] = []
        for name, weight in self.engine.fit.plan.weights.items():
            found = [f"base_model.model.{source.removesuffix('.weight')}" for source, _ in weight.sources]
            if f"{found[0]}.lora_A.weight" not in updates:
                continue
            rows = torch.empty(weight.out_features, weight.in_features, dtype=views[name].dtype)
            ops.unpack_rows(views[name], rows)
            kept.append((views[name], rows.clone()))
            first = 0
            for module, (_, count) in zip(found, weight.sources, strict=True):
                a, b = updates[f"{module}.lora_A.weight"].float(), updates[f"{module}.lora_B.weight"].float()
                rows[first : first + count] = (rows[first : first + count].float() + b @ a).to(rows.dtype)
                first += count
            ops.pack_rows(rows, views[name])

        def restore() -> None:
            for view, old in kept:
                ops.pack_rows(old, view)

        return restore


def kernel_seconds(num_rows: int, width: int, ranks: Sequence[int]) -> tuple[float, float]:
    """Median seconds of one layer's update of so many rows by our kernel, and by padded batched matrix products in torch."""
    import torch

    from ziggurat import kernels
    from ziggurat.kernels.lora_entries import WHOLE_ROWS

    ops, noise = kernels.select("auto", num_threads=2), torch.Generator().manual_seed(1)
    torch.set_num_threads(2)
    x, out = torch.randn(num_rows, width, generator=noise), torch.zeros(num_rows, width)
    most, pairs, entries = max(ranks), [], []
    padded_a, padded_b = torch.zeros(num_rows, width, most), torch.zeros(num_rows, most, width)
    for row in range(num_rows):
        rank = ranks[row % len(ranks)]
        a, b = torch.randn(rank, width, generator=noise), torch.randn(rank, width, generator=noise)
        pairs.append((a, b))
        entries.append((row, 1, a.data_ptr(), b.data_ptr(), rank, 0, width, 0, *WHOLE_ROWS))
        padded_a[row, :, :rank], padded_b[row, :rank] = a.T, b
    numbers, scales = torch.tensor(entries, dtype=torch.int64), torch.ones(num_rows)

    def ours() -> None:
        ops.lora(x, out, numbers, scales)

    def padded() -> None:
        out.add_(torch.bmm(torch.bmm(x[:, None], padded_a), padded_b)[:, 0])

    samples: dict[str, list[float]] = {"ours": [], "padded": []}
    for _ in range(ROUNDS):
        for name, call in (("ours", ours), ("padded", padded)):
            call()
            started_s = time.perf_counter()
            for _ in range(20):
                call()
            samples[name].append((time.perf_counter() - started_s) / 20)
    assert pairs
    return statistics.median(samples["ours"]), statistics.median(samples["padded"])
