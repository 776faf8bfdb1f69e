# SPDX-License-Identifier: Apache-2.0
"""Whole iterations of a model on ranks of a device: operators added up, and what the framework adds.

Prefill: every operator of a layer by the calibrated formulas (`data/calibrations.toml`), two all-reduces per layer, times the layers;
nothing of it is fitted to iterations. Decode: reading weights and KV at 80 % of the published bandwidth, plus ``a + b * batch`` of the
framework, which is fitted per model, device and number of ranks, because a step of a small batch is mostly that.
"""

from __future__ import annotations

import tomllib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ziggurat.errors import ConfigError
from ziggurat.hardware.families import F64, FAMILIES, Calibrated, Columns
from ziggurat.hardware.models import ModelShape, find_model
from ziggurat.hardware.samples import FP16_BYTES, Sample, gemm_sample
from ziggurat.hardware.specs import find_device

_FILE = Path(__file__).with_name("data") / "calibrations.toml"
DECODE_BANDWIDTH_SHARE = 0.8
Group = tuple[str, str, float]


@cache
def _calibration_file() -> dict[str, Any]:
    return tomllib.loads(_FILE.read_text(encoding="utf-8"))


def calibrated(device: str, op_class: str) -> Calibrated | None:
    """Shipped parameters of a class on a device; None if nobody measured it."""
    for row in _calibration_file()["calibration"]:
        if row["device"] == device and row["op_class"] == op_class:
            family = FAMILIES[op_class]
            return Calibrated(
                family=family, values=tuple(float(row[parameter.name]) for parameter in family.parameters)
            )
    return None


def all_reduce_s(device: str, num_ranks: float, num_bytes: float) -> float:
    """Seconds of an all-reduce inside one node, by the shipped latency and bus bandwidth.

    Raises:
        ConfigError: nobody measured that many ranks of the device.
    """
    if num_ranks <= 1:
        return 0.0
    for row in _calibration_file()["all_reduce"]:
        if row["device"] == device and row["ranks"] == num_ranks:
            share = 2 * (num_ranks - 1) / num_ranks
            return float(row["latency_us"] * 1e-6 + share * num_bytes / (row["bus_gb_s"] * 1e9))
    raise ConfigError(f"no all-reduce of {num_ranks:g} ranks of {device} was measured")


def layer_samples(shape: ModelShape, device: str, num_ranks: float, batch: float, prompt: float) -> list[Sample]:
    """The operators of one layer in a prefill of ``batch`` prompts, on one rank."""
    tokens = batch * prompt
    heads, kv_heads = shape.num_heads / num_ranks, max(shape.num_kv_heads / num_ranks, 1.0)
    width, gates = shape.intermediate / num_ranks, 2 if shape.gated else 1
    gemms = {
        "qkv": ((heads + 2 * kv_heads) * shape.head_size, shape.hidden),
        "out": (shape.hidden, heads * shape.head_size),
        "up": (gates * width, shape.hidden),
        "down": (shape.hidden, width),
    }
    found = [gemm_sample(op, tokens, n, k, 1.0, device=device) for op, (n, k) in gemms.items()]
    moved: list[tuple[str, float]] = [*[("layernorm", 2.0 * shape.hidden)] * 2, *[("add", 3.0 * shape.hidden)] * 2]
    moved += [("rope", 2 * (heads + kv_heads) * shape.head_size), ("activation", (gates + 1) * width)]
    found += [
        _plain(device, op_class, {"tokens": tokens, "width": values}, 0.0, FP16_BYTES * tokens * values)
        for op_class, values in moved
    ]
    attention = {"batch": batch, "queries": prompt, "keys": prompt, "heads": heads, "kv_heads": kv_heads}
    flops = 4 * batch * prompt * prompt * heads * shape.head_size
    num_bytes = FP16_BYTES * batch * shape.head_size * prompt * 2 * (heads + kv_heads)
    return [*found, _plain(device, "attention_prefill", attention, flops, num_bytes)]


def _plain(device: str, op_class: str, shape: Mapping[str, float], flops: float, num_bytes: float) -> Sample:
    return Sample(
        file="",
        device=device,
        model="",
        op=op_class,
        op_class=op_class,
        shape=shape,
        flops=flops,
        num_bytes=num_bytes,
        time_s=1.0,
    )


def prefill_s(sample: Sample) -> float | None:
    """Seconds of a prefill iteration, composed; None where an operator of the device was never measured."""
    shape = find_model(sample.model)
    ranks, batch, prompt = (sample.shape[name] for name in ("ranks", "batch", "prompt"))
    total = 0.0
    for each in layer_samples(shape, sample.device, ranks, batch, prompt):
        model = calibrated(sample.device, each.op_class)
        if model is None:
            return None
        total += float(model.predict(Columns.of([each]))[0])
    total += 2 * all_reduce_s(sample.device, ranks, FP16_BYTES * batch * prompt * shape.hidden)
    return total * shape.num_layers


def decode_bytes_s(sample: Sample) -> float:
    """Seconds of reading the weights and the KV of every sequence on one rank."""
    shape = find_model(sample.model)
    ranks, batch, prompt = (sample.shape[name] for name in ("ranks", "batch", "prompt"))
    num_bytes = (shape.weight_bytes + batch * prompt * shape.kv_bytes_per_token) / ranks
    return num_bytes / (DECODE_BANDWIDTH_SHARE * find_device(sample.device).value("bandwidth_gb_s") * 1e9)


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameworkOverhead:
    """``a + b * batch`` seconds per (model, device, ranks)."""

    lines: Mapping[Group, tuple[float, float]]

    def predict(self, samples: Sequence[Sample]) -> F64:
        """Seconds of decode iterations; a group that was not fitted takes the mean of all lines."""
        default = tuple(np.mean(list(self.lines.values()), axis=0)) if self.lines else (0.0, 0.0)
        found = []
        for sample in samples:
            a, b = self.lines.get(group_of(sample), default)
            found.append(decode_bytes_s(sample) + a + b * sample.shape["batch"])
        return np.asarray(found)

    def fitted_share(self, samples: Sequence[Sample]) -> float:
        """Mean share of the answer that comes from the fitted line and not from bytes."""
        total = self.predict(samples)
        return float(np.mean(1 - np.asarray([decode_bytes_s(sample) for sample in samples]) / total))


def group_of(sample: Sample) -> Group:
    """What has a line of its own."""
    return sample.model, sample.device, sample.shape["ranks"]


def fit_overhead(samples: Sequence[Sample]) -> FrameworkOverhead:
    """Least squares of relative errors, per group; a group with one batch size has no slope."""
    groups: dict[Group, list[Sample]] = defaultdict(list)
    for sample in samples:
        groups[group_of(sample)].append(sample)
    lines = {}
    for key, members in groups.items():
        time_s = np.asarray([sample.time_s for sample in members])
        rest = time_s - np.asarray([decode_bytes_s(sample) for sample in members])
        batch = np.asarray([sample.shape["batch"] for sample in members])
        columns = np.stack([np.ones_like(batch), batch], axis=1)[:, : 2 if len(set(batch)) > 1 else 1]
        found = np.linalg.lstsq(columns / time_s[:, None], rest / time_s, rcond=None)[0]
        lines[key] = (float(found[0]), float(found[1]) if len(found) > 1 else 0.0)
    return FrameworkOverhead(lines=lines)


def how_much_is_fitted(samples: Sequence[Sample]) -> dict[str, float]:
    """What a small error of decode iterations is worth: ``fitted_share`` of the answer comes from the fitted lines, and
    ``leave_one_batch_out_mape`` is the error on batch sizes that the lines were not fitted to."""
    found = {"fitted_share": fit_overhead(samples).fitted_share(samples)}
    errors = []
    for batch in sorted({sample.shape["batch"] for sample in samples}):
        held = [sample for sample in samples if sample.shape["batch"] == batch]
        kept = [sample for sample in samples if sample.shape["batch"] != batch]
        if kept:
            measured = np.asarray([sample.time_s for sample in held])
            errors.append(np.abs(fit_overhead(kept).predict(held) / measured - 1))
    return found | ({"leave_one_batch_out_mape": float(np.mean(np.concatenate(errors)))} if errors else {})
