# SPDX-License-Identifier: Apache-2.0
"""``ziggurat plan MODEL --device NAME``: how fast, how many users and at what price on machines that are not here. Loads no torch."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ziggurat.cli.flags import build
from ziggurat.cli.output import emit, table
from ziggurat.engine.config import option
from ziggurat.errors import ConfigError
from ziggurat.units import format_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceOptions:
    """Which machines, and what they have to do."""

    device: tuple[str, ...] = option(
        (), "device of `ziggurat hardware list`; may be given several times", group="device"
    )
    tensor_parallel: tuple[str, ...] = option(
        (),
        "devices that share every layer; may be given several times (default: 1, 2, 4, 8 as far as heads divide)",
        group="device",
    )
    context: int = option(2048, "tokens that a sequence has while it decodes", group="device")
    max_ttft_ms: float | None = option(None, "longest time to the first token", group="device")
    max_tpot_ms: float | None = option(None, "longest time per further token", group="device")
    price_per_hour: tuple[str, ...] = option(
        (), "DEVICE=PRICE of one device; may be given several times", group="device"
    )


def run(namespace: argparse.Namespace, model: str) -> int:
    """Print what each layout would do; exit code 1 when none fits or meets the limits.

    Raises:
        ConfigError: an unknown device or model shape, ranks that do not divide, a value out of range.
    """
    from ziggurat.hardware.advice import Wanted, advise, cheapest, roofline

    options = build(DeviceOptions, namespace)
    shape = shape_of(model)
    wanted = Wanted(
        context=options.context,
        max_ttft_ms=options.max_ttft_ms,
        max_tpot_ms=options.max_tpot_ms,
        price_per_hour=tuple(_prices(options.price_per_hour)),
    )
    layouts = [
        (device, ranks) for device in options.device for ranks in _ranks(options.tensor_parallel, shape.num_heads)
    ]
    rows = [advise(shape, device, ranks, wanted) for device, ranks in layouts]
    best = cheapest(rows)
    data: dict[str, Any] = {
        "kind": "derived",
        "model": shape.name,
        "weight_format": "16 bits",
        "weight_bytes": shape.weight_bytes,
        "kv_bytes_per_token": shape.kv_bytes_per_token,
        "context_tokens": wanted.context,
        "max_ttft_ms": wanted.max_ttft_ms,
        "max_tpot_ms": wanted.max_tpot_ms,
        "layouts": rows,
        "best": None if best is None else {"device": best["device"], "tensor_parallel": best["tensor_parallel"]},
    }
    if best is not None:
        data["layer"] = roofline(shape, best["device"], best["tensor_parallel"], wanted.context)
    emit(namespace, data, lambda: as_text(data))
    return 0 if best is not None else 1


def shape_of(model: str) -> Any:
    """A model of the registry, or the shape of a folder's config.json.

    Raises:
        ConfigError: neither.
    """
    from ziggurat.hardware.models import ModelShape, find_model

    path = Path(model).expanduser()
    if not (path.is_dir() and (path / "config.json").is_file()):
        return find_model(model)
    from ziggurat.programs.config import load_config

    raw = load_config(path)
    try:
        heads = int(raw["num_attention_heads"])
        return ModelShape(
            name=path.resolve().name,
            repository=str(path),
            num_layers=int(raw["num_hidden_layers"]),
            hidden=int(raw["hidden_size"]),
            num_heads=heads,
            num_kv_heads=int(raw.get("num_key_value_heads") or heads),
            intermediate=int(raw["intermediate_size"]),
            vocabulary=int(raw["vocab_size"]),
            gated=True,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{path / 'config.json'} does not say {error}: only decoders of equal layers are planned for"
        ) from error


def _prices(entries: Sequence[str]) -> list[tuple[str, float]]:
    from ziggurat.hardware.specs import find_device

    prices = []
    for entry in entries:
        name, is_pair, text = entry.rpartition("=")
        try:
            price = float(text) if is_pair else 0.0
        except ValueError:
            price = 0.0
        if not price > 0:
            raise ConfigError(f"--price-per-hour {entry!r} must look like h100=2.5")
        prices.append((find_device(name).name, price))
    return prices


def _ranks(asked: Sequence[str], num_heads: int) -> list[int]:
    try:
        return [int(text) for text in asked] or [ranks for ranks in (1, 2, 4, 8) if num_heads % ranks == 0]
    except ValueError as error:
        raise ConfigError(f"--tensor-parallel must be a number of devices, got {', '.join(asked)}") from error


def as_text(data: Mapping[str, Any]) -> str:
    """A row per layout, the best one, and one layer of it against the roofs."""
    prompt = str(512)
    head = ["device", "TP", "weights each", f"users at {data['context_tokens']:,}", f"first token of {prompt}, ms"]
    lines = [[*head, "token alone, ms", "full batch, ms", "tokens/s", "price per M", "kWh per M", ""]]
    for row in data["layouts"]:
        name = row["device"] + ("" if row["is_measured"] else " (not measured)")
        start = [name, str(row["tensor_parallel"]), format_bytes(row["weight_bytes_per_device"])]
        if not row["fits"]:
            lines.append([*start, *["-"] * 7, "does not fit"])
            continue
        best, full = row["best"] or {}, row["decode"][-1]
        shown = best or full
        lines.append(
            [
                *start,
                str(row["max_num_seqs"]),
                f"{row['ttft_ms'][prompt]:.1f}",
                f"{row['decode'][0]['tpot_ms']:.1f}",
                f"{shown['tpot_ms']:.1f}",
                f"{shown['tokens_per_s']:,.0f}",
                _cell(best.get("price_per_million_tokens")),
                _cell(best.get("kwh_per_million_tokens")),
                "; ".join(row["misses"]),
            ]
        )
    weights, kv = format_bytes(data["weight_bytes"]), format_bytes(data["kv_bytes_per_token"])
    parts = [f"{data['model']}: {weights} in 16 bits, {kv} of KV per token", table(lines, right=range(1, 10))]
    if data["best"] is None:
        parts.append("No layout fits and meets the limits: add devices, allow more time, or shorten --context.")
    else:
        best = f"{data['best']['tensor_parallel']} x {data['best']['device']}"
        parts.append(f"Best: {best}. One layer of it, {data['context_tokens']:,} tokens:")
        rows = [["operator", "GFLOP", "MB", "FLOP per byte", "roof, us", "bound by"], *map(_layer_row, data["layer"])]
        parts.append(table(rows, right=range(1, 5)))
    parts.append(
        "Derived from cost models fitted to measured files (docs/hardware.md); no scheduler ran: `ziggurat simulate` runs one."
    )
    return "\n\n".join(parts)


def _layer_row(row: Mapping[str, Any]) -> list[str]:
    work = [f"{row['flops'] / 1e9:.2f}", f"{row['num_bytes'] / 1e6:.1f}", f"{row['flops_per_byte']:g}"]
    return [row["op"], *work, f"{row['roof_us']:.1f}", row["bound"]]


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
