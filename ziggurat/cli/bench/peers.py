# SPDX-License-Identifier: Apache-2.0
"""``ziggurat bench peers``: the same work on Ziggurat and on other engines, each in a process of its own, taking turns."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ziggurat.catalog.peers import probes
from ziggurat.catalog.peers.measure import measure_peers
from ziggurat.catalog.peers.registry import Job, Peer, all_peers, not_installed
from ziggurat.catalog.peers.shapes import SHAPES, write_checkpoint
from ziggurat.catalog.peers.work import ITEMS, MAX_BATCH, QUICK, Lengths
from ziggurat.cli.bench.report import machine_facts
from ziggurat.cli.flags import Parser, add_flags, build, flags_of
from ziggurat.cli.interrupt import raise_interrupts
from ziggurat.cli.output import add_output_flags, emit, table
from ziggurat.cli.progress import show_steps
from ziggurat.engine.config import option
from ziggurat.errors import ConfigError
from ziggurat.units import format_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class PeersOptions:
    """What is compared.

    Raises:
        ConfigError: a value is out of range, or a plot is asked for and cannot be drawn.
    """

    shape: str = option("135m", "model shape; random weights", choices=tuple(SHAPES), group="peers")
    quick: bool = option(False, "short outputs, one repeat: shows that it works, not how fast", group="peers")
    threads: int | None = option(
        None, "threads of every engine (default: the cores this process may use)", group="peers"
    )
    plot: Path | None = option(None, "draw the rows into this file (needs matplotlib)", group="peers")

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise ConfigError(f"threads must be at least 1, got {self.threads}")
        if self.plot is not None and not_installed("matplotlib") is not None:
            raise ConfigError("--plot needs matplotlib: pip install matplotlib, or leave --plot out")

    @property
    def num_threads(self) -> int:
        """Threads of every engine."""
        return self.threads or len(os.sched_getaffinity(0))


def parser() -> Parser:
    """Its flags."""
    parser = Parser("ziggurat bench peers", "Compare engines on the same work, in tokens/s, in the same run.")
    add_flags(parser, flags_of(PeersOptions))
    add_output_flags(parser)
    return parser


def run(argv: Sequence[str]) -> int:
    """Measure and print.

    Raises:
        UserError: a setting; the machine could not be measured. A peer that fails is a row.
    """
    namespace = parser().parse(argv)
    options = build(PeersOptions, namespace)
    # Before the run: by its end another commit may be checked out.
    facts = machine_facts(" ".join(["ziggurat bench peers", *argv]))
    with raise_interrupts():
        result = measure(SHAPES[options.shape], all_peers(), QUICK if options.quick else Lengths(), options.num_threads)
    result["machine"] = facts.pop("machine") | result["machine"] | {"commit": facts["commit"]}
    result |= facts | {"shape": options.shape, "is_quick": options.quick}
    if options.plot is not None:
        draw(result, options.plot)
    emit(namespace, result, lambda: as_text(result))
    return 0


def measure(config: Mapping[str, Any], peers: Sequence[type[Peer]], lengths: Lengths, threads: int) -> dict[str, Any]:
    """Probe the machine, make the checkpoint once, measure, throw the checkpoint away."""
    with tempfile.TemporaryDirectory(prefix="ziggurat-peers-") as name:
        folder = Path(name)
        show_steps(0, 1, "probing the machine, making random weights")
        machine = {"threads": threads, **probes.measure(threads)}
        write_checkpoint(folder, config)
        job = Job(
            folder=folder,
            threads=threads,
            max_num_seqs=max(MAX_BATCH, lengths.num_clients),
            max_model_len=lengths.max_model_len,
            max_kv_tokens=lengths.max_kv_tokens,
        )
        rows = measure_peers(peers, job, lengths, vocab_size=config["vocab_size"], progress=show_steps)
    return {"kind": "measured", "rows": rows, "machine": machine, "lengths": asdict(lengths)}


def as_text(result: Mapping[str, Any]) -> str:
    """The table, the machine, and what is not in the table."""
    lines = [["engine", "format", *ITEMS, "peak RSS"]]
    for row in result["rows"]:
        cells = ["-" if row[item] is None else f"{row[item]:.1f}" for item in ITEMS]
        peak = "-" if row["peak_rss_bytes"] is None else format_bytes(row["peak_rss_bytes"])
        lines.append([row["engine"], row["format"], *cells, peak])
    machine = result["machine"]
    notes = [
        f"{row['engine']} {row['format']}: {row['status']}, {row['note']}" for row in result["rows"] if row["note"]
    ]
    facts = (
        f"tokens/s, medians of {result['lengths']['num_repeats']}. {machine['cpu']}, {machine['threads']} threads, "
        f"reads {machine['read_bandwidth_bytes_per_s'] / 1e9:.1f} GB/s, {machine['fp32_flop_per_s'] / 1e9:.0f} GFLOP/s fp32, "
        f"commit {machine['commit']}"
    )
    return "\n".join([table(lines, right=range(2, 3 + len(ITEMS))), "", facts, *notes])


def draw(result: Mapping[str, Any], path: Path) -> None:
    """One panel per item, one bar per engine that has a figure.

    Raises:
        ConfigError: the file cannot be written, or its ending names no format that matplotlib has.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3 * len(ITEMS), 3.5), layout="constrained")
    for axes, item in zip(figure.subplots(1, len(ITEMS)), ITEMS, strict=True):
        bars = [(f"{row['engine']}\n{row['format']}", row[item]) for row in result["rows"] if row[item] is not None]
        axes.bar([name for name, _ in bars], [rate for _, rate in bars])
        axes.set_title(item, fontsize=9)
        axes.tick_params(labelsize=7)
    figure.supylabel("tokens/s")
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot draw {path}: {error}") from error
