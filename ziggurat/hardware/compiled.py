# SPDX-License-Identifier: Apache-2.0
"""The time of a step as a fast function, for loops over events: `compile_cost` once, then integers in and integer nanoseconds out.

What depends on the number of tokens only (matrices, norms, all-reduces) is composed from the calibrated operators of
`ziggurat.hardware.iteration` when a number of tokens first comes up, and kept. Attention is added per step from what each sequence reads:
a decode its keys and values, a chunk of a prompt the full rectangle of its queries and keys. Where a device was never measured, the shares
of peak and bandwidth of the A100-80GB are taken; they carry over between devices within some 10 % (docs/hardware.md).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from ziggurat.errors import ConfigError
from ziggurat.hardware.families import FAMILIES, TILE, Calibrated, Columns
from ziggurat.hardware.iteration import all_reduce_s, calibrated, layer_samples
from ziggurat.hardware.models import BYTES_16_BIT, ModelShape
from ziggurat.hardware.specs import Spec, find_device

REFERENCE = "a100-80g-sxm"
NS_PER_S = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How a model lies on devices.

    Attributes:
        tensor_parallel: ranks that share every layer.
    """

    tensor_parallel: int = 1

    def check(self, shape: ModelShape) -> None:
        """Refuse a layout that the model cannot have.

        Raises:
            ConfigError: ranks that do not divide the heads.
        """
        ranks = self.tensor_parallel
        if ranks < 1 or shape.num_heads % ranks:
            raise ConfigError(
                f"tensor_parallel {ranks} does not divide the {shape.num_heads} heads of {shape.name}: take one of "
                f"{', '.join(str(n) for n in range(1, 17) if shape.num_heads % n == 0)}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class StepWork:
    """What a step does.

    Attributes:
        num_tokens: rows through the matrices.
        num_seqs: sequences in the batch.
        decode_kv_tokens: keys that all decodes together read.
        chunks: (queries, keys) of every chunk of a prompt, keys including the chunk's own.
    """

    num_tokens: int
    num_seqs: int
    decode_kv_tokens: int = 0
    chunks: tuple[tuple[int, int], ...] = ()


class CompiledCost:
    """See the module. A pure function with a memory; equal arguments, equal nanoseconds.

    Args:
        step_overhead_s, sequence_overhead_s: what the framework adds to a step, and to it per sequence.

    Attributes:
        is_measured: every class of operators was measured on this device.
    """

    def __init__(
        self,
        shape: ModelShape,
        device: Spec,
        layout: Layout,
        *,
        step_overhead_s: float = 0.0,
        sequence_overhead_s: float = 0.0,
    ) -> None:
        layout.check(shape)
        self._shape, self._device, self._ranks = shape, device, layout.tensor_parallel
        self._step_ns = round(step_overhead_s * NS_PER_S)
        self._sequence_s = sequence_overhead_s
        self._by_tokens: dict[int, int] = {}
        self._by_chunk: dict[tuple[int, int], float] = {}
        self.is_measured = all(calibrated(device.name, name) is not None for name in FAMILIES)
        decode = dict(_shares(device, "attention_decode").as_dict())
        kv_bytes = shape.kv_bytes_per_token / self._ranks
        bandwidth = decode["bandwidth_share"] * device.value("bandwidth_gb_s") * 1e9
        self._decode_floor_s = decode["floor_s"] * shape.num_layers
        self._kv_token_s = kv_bytes / bandwidth
        self._prefill = _shares(device, "attention_prefill").as_dict()
        self._head_s = self._head_cost_s()

    def __call__(self, work: StepWork) -> int:
        """Nanoseconds of a step, at least 1."""
        seconds = self._sequence_s * work.num_seqs + self._head_s
        if work.decode_kv_tokens:
            seconds += self._decode_floor_s + self._kv_token_s * work.decode_kv_tokens
        for chunk in work.chunks:
            seconds += self._chunk_s(chunk)
        return max(1, self._step_ns + self._tokens_ns(work.num_tokens) + round(seconds * NS_PER_S))

    def _tokens_ns(self, num_tokens: int) -> int:
        found = self._by_tokens.get(num_tokens)
        if found is None:
            found = self._by_tokens[num_tokens] = round(self._matrices_s(num_tokens) * NS_PER_S)
        return found

    def _matrices_s(self, num_tokens: int) -> float:
        """Everything of all layers but attention."""
        total = 0.0
        for sample in layer_samples(self._shape, self._device.name, self._ranks, 1.0, float(num_tokens)):
            if sample.op_class != "attention_prefill":
                total += float(_shares(self._device, sample.op_class).predict(Columns.of([sample]))[0])
        num_bytes = BYTES_16_BIT * num_tokens * self._shape.hidden
        return (total + 2 * _all_reduce_s(self._device, self._ranks, num_bytes)) * self._shape.num_layers

    def _head_cost_s(self) -> float:
        """Reading the output matrix once; its rows are few."""
        share = _shares(self._device, "gemm").as_dict()["bandwidth_share"]
        num_bytes = BYTES_16_BIT * self._shape.hidden * self._shape.vocabulary / self._ranks
        return num_bytes / (share * self._device.value("bandwidth_gb_s") * 1e9)

    def _chunk_s(self, chunk: tuple[int, int]) -> float:
        found = self._by_chunk.get(chunk)
        if found is None:
            if len(self._by_chunk) > 1 << 16:
                self._by_chunk.clear()
            found = self._by_chunk[chunk] = self._prefill_s(*chunk) * self._shape.num_layers
        return found

    def _prefill_s(self, queries: int, keys: int) -> float:
        """`families.PREFILL` for one chunk, in plain floats."""
        x, heads = self._prefill, self._shape.num_heads / self._ranks
        cores = self._device.constants["num_cores"].value if "num_cores" in self._device.constants else 1.0
        tiles = math.ceil(queries / TILE) * heads
        waves = math.ceil(tiles / cores)
        flops = 4.0 * queries * keys * heads * self._shape.head_size
        wasted = math.pow(waves * cores / tiles, x["wave_exponent"])
        peak = x["compute_share"] * self._device.value("fp16_tflops") * 1e12
        return x["floor_s"] + flops * wasted / peak + x["wave_s"] * waves + x["query_s"] * queries


def compile_cost(
    shape: ModelShape,
    device: str,
    layout: Layout,
    *,
    step_overhead_s: float = 0.0,
    sequence_overhead_s: float = 0.0,
) -> CompiledCost:
    """The step cost of a model on a device.

    Raises:
        ConfigError: unknown device, or a layout that the model cannot have.
    """
    return CompiledCost(
        shape,
        find_device(device),
        layout,
        step_overhead_s=step_overhead_s,
        sequence_overhead_s=sequence_overhead_s,
    )


def kv_pool_tokens(shape: ModelShape, device: str, layout: Layout, memory_share: float) -> int:
    """Tokens of KV that fit beside the weights in that share of the devices' memory; below 1 if not even the weights fit."""
    num_bytes = memory_share * find_device(device).value("memory_gb") * 1e9 * layout.tensor_parallel
    return math.floor((num_bytes - shape.weight_bytes) / shape.kv_bytes_per_token)


def work_of(items: Iterable[tuple[int, int]]) -> StepWork:
    """From (first position, tokens) of every sequence in a batch; a single token behind others is a decode."""
    num_tokens = num_seqs = kv_tokens = 0
    chunks = []
    for start, count in items:
        num_seqs += 1
        num_tokens += count
        if count == 1 and start:
            kv_tokens += start + 1
        else:
            chunks.append((count, start + count))
    return StepWork(num_tokens=num_tokens, num_seqs=num_seqs, decode_kv_tokens=kv_tokens, chunks=tuple(chunks))


def _shares(device: Spec, op_class: str) -> Calibrated:
    found = calibrated(device.name, op_class) or calibrated(REFERENCE, op_class)
    assert found is not None, "the reference device has every class"
    return found


def _all_reduce_s(device: Spec, ranks: int, num_bytes: float) -> float:
    """Measured, or by the published link: latency as on the reference."""
    if ranks <= 1:
        return 0.0
    try:
        return all_reduce_s(device.name, ranks, num_bytes)
    except ConfigError:
        bus = device.value("link_gb_s") * 1e9 / 2
        return 50e-6 + 2 * (ranks - 1) / ranks * num_bytes / bus
