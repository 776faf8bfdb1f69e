# SPDX-License-Identifier: Apache-2.0
"""What people see while a model loads and when it is there."""

from __future__ import annotations

import io

from ziggurat.cli.memory_table import memory_table
from ziggurat.cli.output import table, write_piece
from ziggurat.cli.progress import ProgressLine
from ziggurat.cli.serve import kernels_line
from ziggurat.units import MIB


def row(kind: str, num_bytes: int, tier: str = "ram", depth: int = 0, why: str = "") -> dict[str, object]:
    return {"kind": kind, "owner": "somebody", "tier": tier, "num_bytes": num_bytes, "depth": depth, "why": why}


def test_the_budget_is_the_sum_and_the_baseline_stands_outside() -> None:
    rows = [
        row("weights", 20 * MIB, why="packed"),
        row("kv", 44 * MIB),
        row("kv", 5 * MIB, depth=1),
        row("baseline", 300 * MIB, "baseline"),
    ]
    assert memory_table({"ledger": rows}).splitlines() == [
        "memory       bytes  what it is",
        "weights   20.0 MiB  somebody: packed",
        "kv        44.0 MiB  somebody",
        "budget    64.0 MiB  all of the above: what the process may add over its baseline",
        "baseline   300 MiB  somebody",
    ]


def test_slower_kernels_are_said_aloud() -> None:
    native = {"backend": "native", "isa": "avx2", "threads": 2, "note": ""}
    assert kernels_line(native) == "kernels: native (avx2)"
    twins = {"backend": "torch", "isa": "torch", "threads": 2, "note": "slower: because"}
    assert kernels_line(twins) == "kernels: torch; slower: because"


def test_columns() -> None:
    assert table([("a", "1"), ("bcd", "10")], right=(1,)) == "a     1\nbcd  10"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_for_terminals_and_ends_with_an_empty_line() -> None:
    quiet, terminal = io.StringIO(), Terminal()
    for out in (quiet, terminal):
        line = ProgressLine(out)
        line("weights", 0, 4 * MIB)
        line("weights", 1 * MIB, 4 * MIB)
        line("weights", 4 * MIB, 4 * MIB)
    assert quiet.getvalue() == ""
    assert terminal.getvalue() == "\r\x1b[K  0% of 4.00 MiB  weights\r\x1b[K"


def test_a_model_cannot_command_the_terminal() -> None:
    text = "a\x1b[2Jb\x9b\x7f\n\tü漢"
    pipe, terminal = io.StringIO(), Terminal()
    write_piece(text, pipe)
    write_piece(text, terminal)
    assert pipe.getvalue() == text
    assert terminal.getvalue() == "a\u241b[2Jb\ufffd\ufffd\n\tü漢"
