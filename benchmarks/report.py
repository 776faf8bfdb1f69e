# SPDX-License-Identifier: Apache-2.0
"""What every report says beside its rows: kind, command, commit, machine."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any


def cpu_name() -> str:
    """The processor's name by the kernel, or "unknown"."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown"


def commit() -> str:
    """The checked-out commit, or an empty string outside a repository."""
    done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def publish(command: str, output: Path | None, **content: Any) -> None:
    """Write a report of measured figures to a file, or to standard output."""
    machine = {"cpu": cpu_name(), "cores": len(os.sched_getaffinity(0))}
    text = json.dumps(
        {"kind": "measured", "command": command, "commit": commit(), "machine": machine, **content}, indent=1
    )
    if output:
        output.write_text(text + "\n")
    else:
        print(text)
