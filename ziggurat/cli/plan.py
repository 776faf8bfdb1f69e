# SPDX-License-Identifier: Apache-2.0
"""``ziggurat plan MODEL``: does it fit, and what fits. Reads headers only and sizes with the engine's own `fit`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from ziggurat.cli import plan_device
from ziggurat.cli.flags import Parser, add_flags, build, flags_of
from ziggurat.cli.model_argument import add_model, model_of
from ziggurat.cli.output import add_output_flags, emit, table
from ziggurat.engine.config import EngineConfig
from ziggurat.engine.sizing import ModelSource, open_model, size
from ziggurat.errors import DoesNotFit
from ziggurat.memory.fit import RESERVE_RATIO, Fit
from ziggurat.memory.machine import default_budget
from ziggurat.units import MIB, format_bytes, parse_size

ASSUMED_BASELINE_BYTES = 320 * MIB
"""A little more than what `ziggurat serve` measured in a fresh environment before its model came (276 to 319 MiB; less where other
processes map the same libraries). Only used where neither a budget nor a running process says it."""

# Settings that change sizes; the others of EngineConfig change nothing here.
_FIELDS = (
    *("dtype", "quantization", "load_format", "memory", "max_model_len", "block_size", "kv_cache_dtype"),
    *("max_num_seqs", "max_num_batched_tokens", "offload_folder"),
)


def parser() -> Parser:
    """Its flags."""
    parser = Parser("ziggurat plan", "Say whether a model fits a budget, and what fits: reads headers, loads nothing.")
    add_model(parser)
    add_flags(parser, [flag for flag in flags_of(EngineConfig) if flag.field in _FIELDS])
    add_flags(parser, flags_of(plan_device.DeviceOptions))
    add_output_flags(parser)
    return parser


def run(argv: Sequence[str]) -> int:
    """Print the plan; exit code 1 when nothing fits.

    Raises:
        ModelError, ConfigError: the model or a setting is wrong.
    """
    namespace = parser().parse(argv)
    if getattr(namespace, "device", None):
        return plan_device.run(namespace, model_of(namespace))
    config = build(EngineConfig, namespace, model=model_of(namespace))
    source = open_model(config)
    memory_bytes = default_budget(ASSUMED_BASELINE_BYTES) if config.memory is None else parse_size(config.memory)
    about = {**describe(config, source), "memory_bytes": memory_bytes}
    try:
        result = size(config, source, memory_bytes)
    except DoesNotFit as error:
        refused = {**about, "fits": False, "needed_bytes": error.needed_bytes, "message": str(error)}
        if getattr(namespace, "format", "text") == "json":
            emit(namespace, refused, str)
        print(f"ziggurat: {error}", file=sys.stderr)
        return 1
    data = {**about, **as_json(result)}
    emit(namespace, data, lambda: as_text(data, is_default_budget=config.memory is None))
    return 0


def describe(config: EngineConfig, source: ModelSource) -> dict[str, Any]:
    """What was planned for."""
    return {
        "model": config.model,
        "architecture": source.program.architecture,
        "num_parameters": source.program.num_parameters(),
        "weight_format": source.formats.weight.name,
        "stored_format": source.quantized_as or source.formats.weight.name,
        "kv_format": source.formats.kv.name,
    }


def as_json(result: Fit) -> dict[str, Any]:
    """The sizes, units in the names. The parts add up to ``memory_bytes``; docs/plan.md says what each one is."""
    plan, request = result.plan, result.request
    reserve_bytes = request.memory_bytes - request.usable_bytes
    return {
        "fits": True,
        "weight_bytes": plan.weight_bytes,
        "workspace_bytes": plan.workspace_bytes,
        "table_bytes": plan.table_bytes,
        "sampler_bytes": plan.sampler_bytes,
        "overhead_bytes": request.overhead_bytes,
        "kv_pool_bytes": result.kv_pool_bytes,
        "kv_metadata_bytes": result.metadata_bytes,
        "planned_bytes": result.planned_bytes(),
        "reserve_bytes": reserve_bytes,
        "unused_bytes": request.memory_bytes - reserve_bytes - result.planned_bytes(),
        "kv_bytes_per_token": plan.kv_bytes_per_token(),
        "kv_groups": [
            {
                "num_layers": len(group.layers),
                "window_tokens": None if group.is_tail else group.window,
                "num_blocks": count,
                "is_tail": group.is_tail,
            }
            for group, count in zip(plan.program.kv_groups(), result.num_blocks, strict=True)
        ],
        "block_size_tokens": plan.limits.block_size,
        "max_model_len_tokens": plan.limits.max_model_len,
        "model_limit_tokens": plan.program.max_position,
        "is_context_lowered": result.is_context_lowered,
        "max_num_seqs": plan.limits.max_num_seqs,
        "max_num_batched_tokens": plan.limits.max_num_batched_tokens,
        "longest_context_tokens": result.longest_context_tokens,
        "largest_batch_sequences": result.largest_batch,
        "num_layers": len(plan.layer_spans),
        "num_streamed_layers": len(plan.streamed_layers),
        "streamed_bytes_per_step": sum(plan.layer_spans[layer].num_bytes for layer in plan.streamed_layers),
    }


def as_text(data: dict[str, Any], *, is_default_budget: bool) -> str:
    """The same for people."""
    step = f"a step of up to {data['max_num_batched_tokens']:,} tokens and {_sequences(data['max_num_seqs'])}"
    blocks = ", ".join(_group(group) for group in data["kv_groups"])
    rows = [
        ("weights", "weight_bytes", f"{data['num_parameters']:,} parameters, packed, {_format(data)}"),
        ("workspace", "workspace_bytes", f"activations of {step}"),
        ("tables", "table_bytes", "rotary positions"),
        ("sampler", "sampler_bytes", "one row of the vocabulary"),
        ("overhead", "overhead_bytes", "tokenizer, Python objects, allocator slack (calibrated)"),
        ("KV pool", "kv_pool_bytes", f"{blocks}; {data['block_size_tokens']} tokens per block, {data['kv_format']}"),
        ("KV records", "kv_metadata_bytes", "bookkeeping of those blocks"),
        ("reserve", "reserve_bytes", f"{RESERVE_RATIO:.0%} of the budget"),
        ("unused", "unused_bytes", "less than one block of every group"),
        ("budget", "memory_bytes", _budget_note(is_default_budget)),
    ]
    lines = [(name, format_bytes(data[key]), note) for name, key, note in rows]
    limit = "lowered, the model has" if data["is_context_lowered"] else "of"
    facts = [
        ("KV per token", format_bytes(data["kv_bytes_per_token"])),
        ("context", f"{data['max_model_len_tokens']:,} tokens ({limit} {data['model_limit_tokens']:,})"),
        ("longest that fits", f"{data['longest_context_tokens']:,} tokens in one sequence"),
        ("largest batch", f"{_sequences(data['largest_batch_sequences'])} of {data['max_model_len_tokens']:,} tokens"),
    ]
    if data["num_streamed_layers"]:
        streamed = f"{data['num_streamed_layers']} of {data['num_layers']}: {format_bytes(data['streamed_bytes_per_step'])} in every step"
        facts.append(("read from disk", f"layers {streamed}"))
    return f"{data['model']}: {data['architecture']}\n\n{table(lines, right=(1,))}\n\n{table(facts)}"


def _format(data: dict[str, Any]) -> str:
    name, stored = data["weight_format"], data["stored_format"]
    return f"{name}" if name == stored else f"{name} decoded from {stored} while loading"


def _sequences(count: int) -> str:
    return "1 sequence" if count == 1 else f"{count:,} sequences"


def _group(group: dict[str, Any]) -> str:
    if group["is_tail"]:
        return f"{group['num_blocks']:,} in fp32 that are not full yet"
    span = f"window of {group['window_tokens']:,}" if group["window_tokens"] else "full attention"
    return f"{group['num_blocks']:,} blocks for {group['num_layers']} layers ({span})"


def _budget_note(is_default: bool) -> str:
    if not is_default:
        return "what the process may add over its baseline (--memory)"
    assumed = format_bytes(ASSUMED_BASELINE_BYTES)
    return f"this machine's memory less headroom and a baseline of {assumed}; --memory sets it"
