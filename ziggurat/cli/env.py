# SPDX-License-Identifier: Apache-2.0
"""``ziggurat env``: what a report of a fault needs: versions, processor, limits, memory, kernels. Loads no torch and no model."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from ziggurat import __version__
from ziggurat.cli.flags import Parser
from ziggurat.cli.output import add_output_flags, emit, table
from ziggurat.cli.sources import variables_set
from ziggurat.memory.machine import Machine
from ziggurat.units import format_bytes

# What the kernels ask for, and what somebody who reads the report wants to know of newer processors.
ISA_FLAGS = ("avx2", "fma", "f16c", "avx512f", "avx512_bf16", "avx512_vnni", "amx_tile", "asimd", "bf16", "sve")
# Variables that change how a program computes. Their values are numbers and words, never secrets.
COMPUTE_VARIABLES = (
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "MKL_NUM_THREADS",
    "KMP_AFFINITY",
    "LD_PRELOAD",
    "MALLOC_ARENA_MAX",
)


def parser() -> Parser:
    """Its flags."""
    parser = Parser(
        "ziggurat env", "Describe this machine and this installation; no keys, no names of people or files."
    )
    add_output_flags(parser)
    return parser


def run(argv: Sequence[str]) -> int:
    """Print the report."""
    namespace = parser().parse(argv)
    data = report(Machine())
    emit(namespace, data, lambda: as_text(data))
    return 0


def report(machine: Machine) -> dict[str, Any]:
    """The facts by section; bytes and cores as numbers, None where the system does not tell."""
    return {
        "ziggurat": {"version": __version__, "kernels": kernels()},
        "python": {"version": platform.python_version(), "implementation": platform.python_implementation()},
        "system": {"name": platform.system(), "release": platform.release(), "libc": " ".join(platform.libc_ver())},
        "processor": processor(machine),
        "memory": memory(machine),
        "packages": packages(),
        "environment": {
            "settings": variables_set(),
            **{name: os.environ[name] for name in COMPUTE_VARIABLES if name in os.environ},
        },
    }


def kernels() -> dict[str, Any]:
    """Which kernels would run: the native library loads without torch."""
    from ziggurat.kernels import describe

    return dict(describe())


def processor(machine: Machine) -> dict[str, Any]:
    """Name, the instruction sets that matter, and the cores that this process may use."""
    fields = _cpu_fields(machine.root / "proc" / "cpuinfo")
    flags = (fields.get("flags") or fields.get("Features") or "").split()
    return {
        "name": fields.get("model name") or platform.machine(),
        "architecture": platform.machine(),
        "instruction_sets": [name for name in ISA_FLAGS if name in flags],
        "num_cores": os.cpu_count(),
        "num_usable_cores": machine.usable_cores(),
        "quota_cores": machine.cpu_quota(),
    }


def _cpu_fields(path: Path) -> dict[str, str]:
    """The first processor's fields."""
    try:
        first = path.read_text(encoding="utf-8", errors="replace").split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def memory(machine: Machine) -> dict[str, Any]:
    """RAM, the limit of the control group, and what this very process takes."""
    group, process = machine.group_memory(), machine.process_memory()
    return {
        "ram_bytes": machine.ram_bytes(),
        "group_limit_bytes": group.limit_bytes,
        "group_usage_bytes": group.usage_bytes,
        "limit_bytes": machine.memory_limit_bytes(),
        "has_pss": process.has_pss,
    }


def packages() -> dict[str, str | None]:
    """Versions of what Ziggurat requires, extras included; None for what is not installed."""
    try:
        required = metadata.requires("ziggurat") or []
    except metadata.PackageNotFoundError:
        required = []
    names = sorted({_package_name(line) for line in required} - {"ziggurat"})
    return {name: _version(name) for name in names}


def _package_name(requirement: str) -> str:
    """``torch>=2.4; extra == "x"`` -> ``torch``."""
    end = next((place for place, letter in enumerate(requirement) if not (letter.isalnum() or letter in "-_.")), None)
    return requirement[:end].lower()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def as_text(data: Mapping[str, Mapping[str, Any]]) -> str:
    """One line per fact, below its section."""
    parts = []
    for section, facts in data.items():
        rows = [(f"  {name}", _text(name, value)) for name, value in facts.items()]
        parts.append(f"{section}\n{table(rows)}" if rows else f"{section}\n  nothing")
    return "\n".join(parts)


def _text(name: str, value: Any) -> str:
    if value is None:
        return "not installed" if not name.endswith(("_bytes", "_cores")) else "none"
    if name.endswith("_bytes"):
        return format_bytes(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {each}" for key, each in value.items() if each != "")
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)
