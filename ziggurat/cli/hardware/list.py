# SPDX-License-Identifier: Apache-2.0
"""``ziggurat hardware list``: every name that other commands take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ziggurat.cli.flags import Parser
from ziggurat.cli.output import add_output_flags, emit, table
from ziggurat.hardware.models import model_shapes
from ziggurat.hardware.specs import Spec, devices, links

_COLUMNS = ("fp16_tflops", "memory_gb", "bandwidth_gb_s", "link_gb_s", "tdp_w")


def parser() -> Parser:
    """Its flags."""
    parser = Parser("ziggurat hardware list", "List devices, links and model shapes.")
    add_output_flags(parser)
    return parser


def run(argv: Sequence[str]) -> int:
    """Print the registry."""
    namespace = parser().parse(argv)
    data = {
        "devices": [spec.as_dict() for spec in devices()],
        "links": [spec.as_dict() for spec in links()],
        "models": [
            {"name": shape.name, "repository": shape.repository, "weight_bytes": shape.weight_bytes}
            for shape in model_shapes()
        ],
    }
    emit(namespace, data, lambda: as_text(data))
    return 0


def as_text(data: dict[str, Any]) -> str:
    """Three tables. A number with a question mark is not confirmed."""
    rows = [["device", *_COLUMNS]] + [[spec.name, *(_cell(spec, key) for key in _COLUMNS)] for spec in devices()]
    keys = ("nominal_gb_s", "usable_gb_s", "latency_us")
    tiers = [["link", *keys]] + [[spec.name, *(_cell(spec, key) for key in keys)] for spec in links()]
    models = [["model", "layers", "hidden", "heads", "KV heads", "weights, GB"]] + [
        [m.name, m.num_layers, m.hidden, m.num_heads, m.num_kv_heads, f"{m.weight_bytes / 1e9:.1f}"]
        for m in model_shapes()
    ]
    parts = [
        table([[str(cell) for cell in row] for row in rows], right=range(1, len(rows[0])))
        for rows in (rows, tiers, models)
    ]
    return "\n\n".join(parts)


def _cell(spec: Spec, key: str) -> str:
    if key not in spec.constants:
        return "-"
    constant = spec.constants[key]
    return f"{constant.value:g}{'?' if constant.confidence == 'unconfirmed' else ''}"
