# SPDX-License-Identifier: Apache-2.0
"""``ziggurat trace cache FILE``: what a prefix cache would have found, for every policy and capacity that is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ziggurat.cli.flags import Parser, add_flags, build, flags_of
from ziggurat.cli.output import add_output_flags, emit, table
from ziggurat.cli.trace.hit_curves import SUFFIXES, draw
from ziggurat.cli.trace.source import about, add_source, open_source
from ziggurat.engine.config import option
from ziggurat.errors import ConfigError
from ziggurat.memory.eviction import EVICTION_POLICIES, ORACLES
from ziggurat.units import parse_size

POLICIES = (*EVICTION_POLICIES.names(), *ORACLES.names())
UNKNOWN_NOTE = "nothing is known of the beginnings of {count} prompts: their part of the hit ratios is a lower bound"


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheOptions:
    """The caches to try. Each policy meets each capacity; a cache without limit is always tried too, as the most there is to be had.

    Raises:
        ConfigError: a value is out of range, or a size in bytes without the bytes of a token.
    """

    block_size: int = option(512, "tokens per block", group="cache")
    capacity_blocks: tuple[int, ...] = option((), "blocks of the cache; may be given several times", group="cache")
    capacity: tuple[str, ...] = option((), "size of the cache, e.g. 8GiB; may be given several times", group="cache")
    kv_bytes_per_token: int | None = option(
        None, "bytes of KV per token (`ziggurat plan` says them); goes with --capacity", group="cache"
    )
    policy: tuple[str, ...] = option(
        (),
        f"eviction policy, of {', '.join(POLICIES)}; may be given several times (default: all)",
        group="cache",
    )
    plot: Path | None = option(
        None,
        "picture of the hit curves over capacity, .png or .svg (extra `plots`); give several capacities",
        group="cache",
    )

    def __post_init__(self) -> None:
        if self.block_size < 1:
            raise ConfigError(f"block_size must be at least 1, got {self.block_size}")
        if bool(self.capacity) != (self.kv_bytes_per_token is not None):
            raise ConfigError("--capacity SIZE and --kv-bytes-per-token N go together; --capacity-blocks needs neither")
        if self.plot is not None and not (self.capacity or self.capacity_blocks):
            raise ConfigError(
                "--plot draws hits over capacity: give --capacity-blocks or --capacity, best several times"
            )
        if self.plot is not None and self.plot.suffix not in SUFFIXES:
            raise ConfigError(f"a picture ends in {' or '.join(SUFFIXES)}, got {self.plot.name!r}")
        if self.kv_bytes_per_token is not None and self.kv_bytes_per_token < 1:
            raise ConfigError(f"kv_bytes_per_token must be at least 1, got {self.kv_bytes_per_token}")

    def capacities(self) -> list[int | None]:
        """In blocks, ascending, without limit last.

        Raises:
            ConfigError: a size that is none, or smaller than one block.
        """
        found = set(self.capacity_blocks)
        for text in self.capacity:
            block_bytes = self.block_size * (self.kv_bytes_per_token or 0)
            num_blocks = parse_size(text) // block_bytes
            if not num_blocks:
                raise ConfigError(f"{text} is less than one block of {self.block_size} tokens, {block_bytes} bytes")
            found.add(num_blocks)
        return [*sorted(found), None]


def parser() -> Parser:
    """Its flags."""
    parser = Parser("ziggurat trace cache", "Say what a prefix cache of a given size would have found in a trace.")
    add_source(parser)
    add_flags(parser, flags_of(CacheOptions))
    add_output_flags(parser)
    return parser


def run(argv: Sequence[str]) -> int:
    """Send the trace through all caches at once, and print.

    Raises:
        ConfigError: a setting, or a file that is not a trace; says the row.
    """
    namespace = parser().parse(argv)
    from ziggurat.workload.traces.cache import CacheSetting, CacheSimulation

    options = build(CacheOptions, namespace)
    settings = [
        CacheSetting(policy=policy, capacity_blocks=capacity)
        for capacity in options.capacities()
        for policy in options.policy or POLICIES
    ]
    reader = open_source(namespace)
    simulation = CacheSimulation(settings, options.block_size).run(reader)
    notes = [UNKNOWN_NOTE.format(count=simulation.num_unknown)] if simulation.num_unknown else []
    if not reader.has_times:
        notes.append("the file has no times: conversations overlap as they were assigned")
    data = {
        **about(reader),
        "block_size_tokens": options.block_size,
        "kv_bytes_per_token": options.kv_bytes_per_token,
        "num_requests_unknown": simulation.num_unknown,
        "notes": notes,
        "caches": [with_bytes(row, options) for row in simulation.rows()],
    }
    if options.plot is not None:
        draw(data, options.plot)
    emit(namespace, data, lambda: as_text(data, reader.counts.as_text()))
    return 0


def with_bytes(row: dict[str, Any], options: CacheOptions) -> dict[str, Any]:
    """The row with its capacity in bytes, where the bytes of a token are known."""
    blocks, per_token = row["capacity_blocks"], options.kv_bytes_per_token
    is_known = blocks is not None and per_token is not None
    return {**row, "capacity_bytes": blocks * options.block_size * per_token if is_known else None}


def as_text(data: dict[str, Any], books: str) -> str:
    """A row per cache."""
    rows = [["policy", "blocks", "hit tokens", "hit blocks", "requests with a hit", "evicted blocks"]]
    for row in data["caches"]:
        blocks = "no limit" if row["capacity_blocks"] is None else f"{row['capacity_blocks']:,}"
        ratio = "-" if row["block_hit_ratio"] is None else f"{row['block_hit_ratio']:.1%}"
        rows.append(
            [
                row["policy"],
                blocks,
                f"{row['token_hit_ratio']:.1%}",
                ratio,
                f"{row['num_hit_requests']:,}",
                f"{row['evicted_blocks']:,}",
            ]
        )
    head = [f"{data['file']}: {data['trace_format']}", books, f"blocks of {data['block_size_tokens']} tokens", ""]
    return "\n".join([*head, table(rows, right=range(1, 6)), *(f"\n{note}" for note in data["notes"])])
