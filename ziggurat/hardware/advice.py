# SPDX-License-Identifier: Apache-2.0
"""How fast a model would be on devices that are not here, what that costs, and which layout meets a target. Pure; weights in 16 bits.

Times come from the compiled cost model that the simulator uses; on a device that was never measured its published roofs are taken with the
shares of the A100, and the row says so. No scheduler runs here: a first token is a prompt alone, a token is a full batch decoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ziggurat.errors import ConfigError
from ziggurat.hardware.compiled import CompiledCost, Layout, StepWork, compile_cost, kv_pool_tokens
from ziggurat.hardware.families import Columns
from ziggurat.hardware.iteration import layer_samples
from ziggurat.hardware.models import ModelShape
from ziggurat.hardware.specs import find_device

NS_PER_MS = 1e6
S_PER_HOUR = 3600.0
KWH_J = 3.6e6
MEMORY_SHARE = 0.9
"""Of a device's memory that weights and KV may take; the rest is the framework's (vLLM's default)."""
PROMPTS = (128, 512, 2048, 8192)
BATCHES = (1, 8, 32, 128)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a service has to do.

    Attributes:
        context: tokens that a sequence has while it decodes, on average.
        max_ttft_ms, max_tpot_ms: limits of the first token (of a prompt of ``context`` tokens) and of every further one; None: no limit.
        price_per_hour: of one device by name, in any currency.

    Raises:
        ConfigError: a value is not above 0.
    """

    context: int = 2048
    max_ttft_ms: float | None = None
    max_tpot_ms: float | None = None
    price_per_hour: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        limits = {"context": self.context, "max_ttft_ms": self.max_ttft_ms, "max_tpot_ms": self.max_tpot_ms}
        for name, value in (*limits.items(), *((f"price of {device}", price) for device, price in self.price_per_hour)):
            if value is not None and not value > 0:
                raise ConfigError(f"{name} must be above 0, got {value}")


def advise(shape: ModelShape, device: str, tensor_parallel: int, wanted: Wanted) -> dict[str, Any]:
    """One layout as plain data; with ``fits`` False nothing but sizes.

    Keys: ``device``, ``tensor_parallel``, ``fits``, ``is_measured``, ``weight_bytes_per_device``, ``memory_bytes``, ``kv_tokens``,
    ``max_num_seqs`` (of ``context`` tokens), ``ttft_ms`` (by prompt length), ``decode`` (rows of batch, tpot_ms, tokens_per_s),
    ``best`` (the largest batch within the limits, with price and energy per million tokens), ``misses`` (limits that cannot be met).

    Raises:
        ConfigError: unknown device, or ranks that do not divide the heads.
    """
    spec, layout = find_device(device), Layout(tensor_parallel=tensor_parallel)
    cost = compile_cost(shape, device, layout)
    kv_tokens = kv_pool_tokens(shape, device, layout, MEMORY_SHARE)
    found: dict[str, Any] = {
        "device": spec.name,
        "tensor_parallel": tensor_parallel,
        "is_measured": cost.is_measured,
        "weight_bytes_per_device": shape.weight_bytes // tensor_parallel,
        "memory_bytes": int(spec.value("memory_gb") * 1e9),
        "kv_tokens": max(kv_tokens, 0),
        "max_num_seqs": max(kv_tokens, 0) // wanted.context,
        "fits": kv_tokens >= wanted.context,
    }
    if not found["fits"]:
        return found
    batches = sorted({*(batch for batch in BATCHES if batch <= found["max_num_seqs"]), found["max_num_seqs"]})
    ttft_ms = first_token_ms(cost, wanted.context)
    best = _largest_batch(cost, wanted, int(found["max_num_seqs"]))
    misses = []
    if wanted.max_ttft_ms is not None and ttft_ms > wanted.max_ttft_ms:
        misses.append(f"first token {ttft_ms:.0f} ms, {wanted.max_ttft_ms:g} allowed")
    if best is None:
        alone = token_ms(cost, 1, wanted.context)
        misses.append(f"a token takes {alone:.1f} ms even alone, {wanted.max_tpot_ms:g} allowed")
    return found | {
        "ttft_ms": {str(prompt): round(first_token_ms(cost, prompt), 2) for prompt in PROMPTS},
        "decode": [_decode_row(cost, batch, wanted.context) for batch in batches],
        "best": None if best is None or misses else _economy(cost, best, spec.name, tensor_parallel, wanted),
        "misses": misses,
    }


def first_token_ms(cost: CompiledCost, prompt: int) -> float:
    """A prompt alone, in one step."""
    return cost(StepWork(num_tokens=prompt, num_seqs=1, chunks=((prompt, prompt),))) / NS_PER_MS


def token_ms(cost: CompiledCost, batch: int, context: int) -> float:
    """A step in which so many sequences of that length decode."""
    return cost(StepWork(num_tokens=batch, num_seqs=batch, decode_kv_tokens=batch * context)) / NS_PER_MS


def _decode_row(cost: CompiledCost, batch: int, context: int) -> dict[str, float]:
    ms = token_ms(cost, batch, context)
    return {"batch": batch, "tpot_ms": round(ms, 3), "tokens_per_s": round(1000 * batch / ms, 1)}


def _largest_batch(cost: CompiledCost, wanted: Wanted, most: int) -> int | None:
    """The largest batch whose step is within the limit; a step never gets shorter with more sequences."""
    limit = wanted.max_tpot_ms
    if limit is None:
        return most
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        if token_ms(cost, middle, wanted.context) <= limit:
            low = middle
        else:
            high = middle - 1
    return low or None


def _economy(cost: CompiledCost, batch: int, device: str, ranks: int, wanted: Wanted) -> dict[str, float | None]:
    row = _decode_row(cost, batch, wanted.context)
    per_s, spec = row["tokens_per_s"], find_device(device)
    price = dict(wanted.price_per_hour).get(device)
    watts = spec.value("tdp_w") * ranks if "tdp_w" in spec.constants else None
    return row | {
        "price_per_million_tokens": None if price is None else round(price * ranks / per_s / S_PER_HOUR * 1e6, 4),
        "kwh_per_million_tokens": None if watts is None else round(watts / per_s * 1e6 / KWH_J, 4),
    }


def roofline(shape: ModelShape, device: str, tensor_parallel: int, num_tokens: int) -> list[dict[str, Any]]:
    """The operators of one layer on one rank in a step of so many tokens of one prompt: work, the published roof, and which one binds."""
    spec = find_device(device)
    rows = []
    for sample in layer_samples(shape, spec.name, tensor_parallel, 1.0, float(num_tokens)):
        columns = Columns.of([sample])
        compute_s = sample.flops / (spec.value("fp16_tflops") * 1e12)
        memory_s = sample.num_bytes / (spec.value("bandwidth_gb_s") * 1e9)
        rows.append(
            {
                "op": sample.op,
                "op_class": sample.op_class,
                "flops": sample.flops,
                "num_bytes": sample.num_bytes,
                "flops_per_byte": round(sample.flops / sample.num_bytes, 2),
                "roof_us": round(float(columns.ideal_s[0]) * 1e6, 3),
                "bound": "compute" if compute_s > memory_s else "memory",
            }
        )
    return rows


def cheapest(rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Of the layouts that meet the limits, the one with the lowest price per token; without prices the one with fewest devices, then the
    most tokens per second."""
    meeting = [row for row in rows if row["fits"] and row["best"] is not None]
    if not meeting:
        return None

    def rank(row: dict[str, Any]) -> tuple[float, float, float]:
        price = row["best"]["price_per_million_tokens"]
        return (float("inf") if price is None else price, row["tensor_parallel"], -row["best"]["tokens_per_s"])

    return min(meeting, key=rank)
