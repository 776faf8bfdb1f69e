# SPDX-License-Identifier: Apache-2.0
"""Measured operators as one table, whatever file they come from.

Formats: Vidur's profiles (operators of one layer, attention, collectives) and Splitwise's whole iterations; the columns tell which one a
file has. Times are medians per configuration, in seconds.
"""

from __future__ import annotations

import csv
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

from ziggurat.errors import ConfigError
from ziggurat.hardware.specs import Spec, find_device
from ziggurat.registry import nearest

KINDS = ("gemm", "attention", "collective", "iteration")
FP16_BYTES = 2
# Splitwise's rows of power-capped devices are computed from the others, not measured.
_SYNTHETIC = "-pcap"
Row = Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One measured configuration.

    Attributes:
        op: the operator's own name in the file; op_class: what one cost model covers (``gemm``, ``layernorm``, ``attention_decode`` ..).
        shape: sizes by name, as the class needs them (m, n, k; batch, kv; bytes, ranks ..).
        flops, num_bytes: of the operation on one device.
        time_s: median of the repeats.
    """

    file: str
    device: str
    model: str
    op: str
    op_class: str
    shape: Mapping[str, float]
    flops: float
    num_bytes: float
    time_s: float


def read_samples(path: Path, kind: str) -> list[Sample]:
    """All samples of a file.

    Args:
        kind: one of `KINDS`; the file must have its columns.

    Raises:
        ConfigError: the file cannot be read, has other columns, or a row with a number that is none, negative or missing.
    """
    rows, columns = _read_rows(path)
    found = kind_of(columns)
    if found != kind:
        what = f"a file of kind {found}" if found else f"no known profile (columns {', '.join(columns[:4])} ..)"
        raise ConfigError(f"{path} is {what}, not of kind {kind}: see docs/hardware.md for the columns of each kind")
    samples = _READERS[kind](path, rows)
    if not samples:
        raise ConfigError(f"{path} has no row that can be used: give a file with at least one measured configuration")
    return merge_repeats(samples)


def kind_of(columns: Sequence[str]) -> str | None:
    """The kind of file with these columns; None if it is none of them."""
    known = set(columns)
    if {"num_tokens", "n_embd", "time_stats.mlp_up_proj.median"} <= known:
        return "gemm"
    if {"is_prefill", "kv_cache_size", "time_stats.attn_decode.median"} <= known:
        return "attention"
    if {"collective", "size", "num_workers"} <= known:
        return "collective"
    if {"prompt_time", "token_time", "batch_size"} <= known:
        return "iteration"
    return None


def merge_repeats(samples: Iterable[Sample]) -> list[Sample]:
    """One sample per configuration, with the median of its times; in order of first appearance."""
    groups: dict[object, list[Sample]] = defaultdict(list)
    for sample in samples:
        groups[sample.device, sample.model, sample.op, tuple(sorted(sample.shape.items()))].append(sample)
    return [_with_time(group[0], median(each.time_s for each in group)) for group in groups.values()]


def _with_time(sample: Sample, time_s: float) -> Sample:
    fields = {name: getattr(sample, name) for name in Sample.__slots__}
    return Sample(**{**fields, "time_s": time_s})


def _read_rows(path: Path) -> tuple[Sequence[tuple[int, Row]], list[str]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            rows: list[tuple[int, Row]] = list(enumerate(reader, 2))
            return rows, list(reader.fieldnames or ())
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"cannot read the profile {path}: {error}") from None


def number(path: Path, line: int, row: Row, column: str) -> float:
    """A cell that must be a number of at least 0.

    Raises:
        ConfigError: it is not; says where.
    """
    text = row.get(column) or ""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise ConfigError(f"{path}, line {line}: {column} must be a number of at least 0, got {text[:40]!r}")
    return value


def milliseconds(path: Path, line: int, row: Row, op: str) -> float | None:
    """The median time of an operator, in seconds; None where the cell is empty or zero (the operator does not apply)."""
    column = f"time_stats.{op}.median"
    if not row.get(column):
        return None
    return number(path, line, row, column) / 1e3 or None


def device_in(path: Path) -> Spec:
    """The device that a file's name names (``mlp_a100_ORG_MODEL.csv``).

    Raises:
        ConfigError: none of its words is a known device.
    """
    words = re.split(r"[_.]", path.name.lower())
    for word in words[1:]:
        try:
            return find_device(word)
        except ConfigError:
            continue
    raise ConfigError(
        f"the name of {path.name} names no device{nearest(words[1] if len(words) > 1 else '', ['a100', 'a40', 'h100'])}: "
        "name profiles KIND_DEVICE_REST.csv, with a device of `ziggurat hardware list`"
    )


# ---- operators of one layer


def _read_gemms(path: Path, rows: Sequence[tuple[int, Row]]) -> list[Sample]:
    device = device_in(path).name
    parts = path.name.removesuffix(".csv").split("_", 3)
    common = {"file": path.name, "device": device, "model": parts[3] if len(parts) > 3 else parts[-1]}
    samples = []
    for line, row in rows:
        tokens, gemms, moved = _layer_sizes(path, line, row)
        for op, (n, k) in gemms.items():
            time_s = milliseconds(path, line, row, op)
            if time_s is not None:
                samples.append(gemm_sample(op, tokens, n, k, time_s, **common))
        for (op, op_class), values in moved.items():
            time_s = milliseconds(path, line, row, op)
            if time_s is not None:
                shape = {"tokens": tokens, "width": values}
                num_bytes = tokens * values * FP16_BYTES
                samples.append(
                    Sample(
                        **common, op=op, op_class=op_class, shape=shape, flops=0.0, num_bytes=num_bytes, time_s=time_s
                    )
                )
    return samples


def _layer_sizes(
    path: Path, line: int, row: Row
) -> tuple[float, dict[str, tuple[float, float]], dict[tuple[str, str], float]]:
    """(tokens, (n, k) of each GEMM, values per token that each element-wise operator moves) on one rank."""
    value = partial(number, path, line, row)
    tokens, hidden, width = value("num_tokens"), value("n_embd"), value("n_expanded_embd")
    heads, kv_heads, ranks = value("n_head"), value("n_kv_head"), value("num_tensor_parallel_workers")
    if min(tokens, hidden, width, heads, kv_heads, ranks) < 1:
        raise ConfigError(f"{path}, line {line}: sizes must be at least 1")
    gates = 2 if (row.get("use_gated_mlp") or "").lower() in ("true", "1", "1.0") else 1
    head_size = hidden / heads
    # With fewer KV heads than ranks every rank keeps a copy of one.
    kv_share = max(kv_heads / ranks, 1.0)
    own = heads / ranks * head_size
    gemms = {
        "attn_pre_proj": (own + 2 * kv_share * head_size, hidden),
        "attn_post_proj": (hidden, own),
        "mlp_up_proj": (gates * width / ranks, hidden),
        "mlp_down_proj": (hidden, width / ranks),
    }
    moved = {
        ("input_layernorm", "layernorm"): 2 * hidden,
        ("post_attention_layernorm", "layernorm"): 2 * hidden,
        ("attn_rope", "rope"): 2 * (heads / ranks + kv_share) * head_size,
        ("mlp_act", "activation"): (gates + 1) * width / ranks,
        ("add", "add"): 3 * hidden,
    }
    return tokens, gemms, moved


def gemm_sample(
    op: str, m: float, n: float, k: float, time_s: float, *, file: str = "", device: str, model: str = ""
) -> Sample:
    """[m, k] by [k, n] in 16 bits."""
    num_bytes = FP16_BYTES * (m * k + k * n + m * n)
    return Sample(
        file=file,
        device=device,
        model=model,
        op=op,
        op_class="gemm",
        shape={"m": m, "n": n, "k": k},
        flops=2 * m * n * k,
        num_bytes=num_bytes,
        time_s=time_s,
    )


# ---- attention


def _read_attention(path: Path, rows: Sequence[tuple[int, Row]]) -> list[Sample]:
    device = device_in(path).name
    samples = []
    for line, row in rows:
        value = partial(number, path, line, row)
        heads, kv_heads, ranks = value("n_q_head"), value("n_kv_head"), value("num_tensor_parallel_workers")
        if min(heads, kv_heads, ranks) < 1:
            raise ConfigError(f"{path}, line {line}: sizes must be at least 1")
        head_size = value("n_embd") / heads
        batch, kv, chunk = value("batch_size"), value("kv_cache_size"), value("prefill_chunk_size")
        is_prefill = (row.get("is_prefill") or "").lower() == "true"
        time_s = milliseconds(path, line, row, "attn_prefill" if is_prefill else "attn_decode")
        if time_s is None:
            continue
        own_heads, own_kv_heads = heads / ranks, max(kv_heads / ranks, 1.0)
        queries = chunk if is_prefill else 1.0
        # The measured kernels read and compute the full rectangle of queries and keys, not its causal half.
        keys = kv + (queries if is_prefill else 0.0)
        flops = 4 * batch * queries * keys * own_heads * head_size
        num_bytes = FP16_BYTES * batch * head_size * (2 * keys * own_kv_heads + 2 * queries * own_heads)
        samples.append(
            Sample(
                file=path.name,
                device=device,
                model=path.name.removesuffix(".csv").split("_", 2)[-1],
                op="attn_prefill" if is_prefill else "attn_decode",
                op_class="attention_prefill" if is_prefill else "attention_decode",
                shape={"batch": batch, "queries": queries, "keys": keys, "heads": own_heads, "kv_heads": own_kv_heads},
                flops=flops,
                num_bytes=num_bytes,
                time_s=time_s,
            )
        )
    return samples


# ---- collectives and iterations


def _read_collectives(path: Path, rows: Sequence[tuple[int, Row]]) -> list[Sample]:
    device = device_in(path).name
    samples = []
    for line, row in rows:
        op = row.get("collective") or ""
        time_s = milliseconds(path, line, row, op)
        if time_s is None:
            continue
        ranks, per_node = (number(path, line, row, name) for name in ("num_workers", "devices_per_node"))
        size = number(path, line, row, "size")
        samples.append(
            Sample(
                file=path.name,
                device=device,
                model="",
                op=op,
                op_class=op if ranks <= per_node or (op == "send_recv" and per_node > 1) else f"{op}_across_nodes",
                shape={"bytes": size, "ranks": ranks, "per_node": per_node},
                flops=0.0,
                num_bytes=size,
                time_s=time_s,
            )
        )
    return samples


def _read_iterations(path: Path, rows: Sequence[tuple[int, Row]]) -> list[Sample]:
    samples = []
    for line, row in rows:
        value = partial(number, path, line, row)
        if (row.get("hardware") or "").endswith(_SYNTHETIC):
            continue
        prompt, batch, ranks = value("prompt_size"), value("batch_size"), value("tensor_parallel")
        shape = {"prompt": prompt, "batch": batch, "ranks": ranks}
        common = {"file": path.name, "device": find_device(row.get("hardware") or "").name, "model": row["model"]}
        for op, op_class in (("prompt_time", "prefill"), ("token_time", "decode")):
            time_s = value(op) / 1e3
            if time_s > 0:
                samples.append(
                    Sample(**common, op=op, op_class=op_class, shape=shape, flops=0.0, num_bytes=0.0, time_s=time_s)
                )
    return without_split_batches(samples)


def without_split_batches(samples: Sequence[Sample]) -> list[Sample]:
    """Leave out configurations whose batch did not run as one: a prefill in less than half the time of a smaller batch of the same
    prompts means that the server preempted or split it (llama2-70b on two A100 at batch 64 in Splitwise's file)."""
    times: dict[object, list[tuple[float, float]]] = defaultdict(list)

    def key(sample: Sample) -> object:
        return sample.device, sample.model, sample.shape["ranks"], sample.shape["prompt"]

    for sample in samples:
        if sample.op_class == "prefill":
            times[key(sample)].append((sample.shape["batch"], sample.time_s))

    def is_split(sample: Sample) -> bool:
        batch = sample.shape["batch"]
        own = [time_s for size, time_s in times[key(sample)] if size == batch]
        smaller = [time_s for size, time_s in times[key(sample)] if size < batch]
        return bool(own and smaller) and median(own) < max(smaller) / 2

    return [sample for sample in samples if not is_split(sample)]


_READERS: dict[str, Callable[[Path, Sequence[tuple[int, Row]]], list[Sample]]] = {
    "gemm": _read_gemms,
    "attention": _read_attention,
    "collective": _read_collectives,
    "iteration": _read_iterations,
}
