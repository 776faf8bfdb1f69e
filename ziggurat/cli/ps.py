# SPDX-License-Identifier: Apache-2.0
"""``ziggurat ps``: a running server at a glance: its model, its requests, and who holds which memory."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ziggurat.cli.connection import Connection
from ziggurat.cli.flags import Parser, UsageError, add_flags, build, flags_of
from ziggurat.cli.interrupt import raise_interrupts
from ziggurat.cli.memory_table import memory_table
from ziggurat.cli.output import add_output_flags, emit, table
from ziggurat.engine.config import option
from ziggurat.errors import ConfigError
from ziggurat.units import format_bytes

CLEAR_SCREEN = "\x1b[H\x1b[2J"
MIN_WATCH_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class PsOptions:
    """Which server, and how often.

    Raises:
        ConfigError: the interval is too short.
    """

    url: str = option("http://127.0.0.1:8000", "address of the server; unix:PATH for a Unix socket", group="server")
    watch: float | None = option(None, "look again every so many seconds, until Ctrl-C", group="server")

    def __post_init__(self) -> None:
        if self.watch is not None and not MIN_WATCH_S <= self.watch <= 86_400:
            raise ConfigError(f"watch must be at least {MIN_WATCH_S} and at most 86400 seconds, got {self.watch!r}")


def parser() -> Parser:
    """Its flags."""
    parser = Parser("ziggurat ps", "Show what a running server serves, its requests, and who holds which memory.")
    add_flags(parser, flags_of(PsOptions))
    add_output_flags(parser)
    return parser


def run(argv: Sequence[str]) -> int:
    """Look once, or until Ctrl-C.

    Raises:
        UsageError: a file for what never ends.
        ConfigError: no server answers; StateError: it is still loading, or has failed.
    """
    namespace = parser().parse(argv)
    options = build(PsOptions, namespace)
    connection = Connection(options.url)
    if options.watch is None:
        data = look(connection)
        emit(namespace, data, lambda: as_text(data))
        return 0
    if getattr(namespace, "output", None) is not None:
        raise UsageError("--watch has no end, so it writes no --output; redirect standard output instead")
    is_json = getattr(namespace, "format", "text") == "json"
    with raise_interrupts():
        try:
            _watch(connection, options.watch, is_json=is_json)
        except KeyboardInterrupt:
            return 0  # the usual way to leave
    return 0


def _watch(
    connection: Connection, every_s: float, *, is_json: bool, sleep: Callable[[float], None] = time.sleep
) -> None:
    before: Mapping[str, Any] | None = None
    while True:
        data = look(connection)
        data["tokens_per_s"] = None if before is None else tokens_per_s(before, data)
        if is_json:
            print(json.dumps(data, ensure_ascii=False), flush=True)
        else:
            print(f"{CLEAR_SCREEN if sys.stdout.isatty() else ''}{as_text(data)}\n", flush=True)
        before = data
        sleep(every_s)


def look(connection: Connection) -> dict[str, Any]:
    """What the server says of itself now.

    Keys: ``url``, ``model``, ``phase``, ``uptime_s``, ``max_model_len_tokens``, ``requests`` (counts and token totals), ``sequences``
    (request, state, age, tokens, bytes of their own and bytes they share), ``kv_bytes``, ``budget_bytes``, ``baseline_bytes``,
    ``pss_bytes``, ``above_baseline_bytes`` (what the budget is checked against), ``ledger``; ``clients``, ``adapters``,
    ``sessions_kept``, ``swap`` and ``streaming`` as in ``GET /memory``.

    Raises:
        ConfigError: whoever answers is no server of ours.
    """
    report = connection.get("/memory")
    try:
        return {
            "url": connection.name,
            "model": report["model"],
            "phase": report["phase"],
            "uptime_s": report["uptime_s"],
            "max_model_len_tokens": report["max_model_len"],
            "requests": report["requests"],
            "sequences": [_sequence(row, report) for row in report["sequences"]],
            "kv_bytes": report["kv_bytes"],
            "budget_bytes": sum(report["limits"].values()),
            "baseline_bytes": report["baseline_bytes"],
            "pss_bytes": report["process"]["pss_bytes"],
            "above_baseline_bytes": report["process"]["above_baseline_bytes"],
            "ledger": report["ledger"],
            # A server of an older version tells nothing of these.
            **{name: report.get(name) or [] for name in ("clients", "adapters", "sessions_kept")},
            **{name: report.get(name) for name in ("swap", "streaming")},
        }
    except (KeyError, TypeError) as error:
        raise ConfigError(
            f"{connection.name} answers, but /memory is not a memory map of Ziggurat: no {error}"
        ) from error


def _sequence(row: Mapping[str, Any], report: Mapping[str, Any]) -> dict[str, Any]:
    sizes = [group["block_bytes"] for group in report["kv"]]
    shared = [held - own for held, own in zip(row.get("num_blocks", ()), row.get("num_own_blocks", ()), strict=True)]
    return {
        "request_id": row["request_id"],
        "state": row["state"],
        "age_s": round(max(0.0, report["now_s"] - row["since_s"]), 3),
        "num_prompt_tokens": row["num_prompt_tokens"],
        "num_output_tokens": row["num_output_tokens"],
        "num_cached_tokens": row["num_cached_tokens"],
        "own_bytes": row["own_bytes"],
        "shared_bytes": sum(count * size for count, size in zip(shared, sizes, strict=False)),
    }


def tokens_per_s(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, float]:
    """Rates between two looks, by the server's clock."""
    span_s = max(after["uptime_s"] - before["uptime_s"], 1e-3)
    names = ("prompt_tokens", "generation_tokens")
    return {name: round((after["requests"][name] - before["requests"][name]) / span_s, 1) for name in names}


def as_text(data: Mapping[str, Any]) -> str:
    """The same for people: server, requests, memory."""
    requests, kv, rates = data["requests"], data["kv_bytes"], data.get("tokens_per_s")
    above_bytes = data["above_baseline_bytes"]
    facts = [
        ("server", f"{data['url']}, {data['phase']}, up {_duration(data['uptime_s'])}"),
        ("model", f"{data['model']}, context {data['max_model_len_tokens']:,} tokens"),
        ("requests", f"{requests['num_running']} running, {requests['num_waiting']} waiting"),
        ("tokens", f"{requests['prompt_tokens']:,} of prompts, {requests['generation_tokens']:,} generated"),
        (
            "KV",
            f"{format_bytes(kv['used_bytes'])} used, {format_bytes(kv['cached_bytes'])} reusable, {format_bytes(kv['free_bytes'])} free",
        ),
        (
            "process",
            f"{format_bytes(above_bytes)} above its baseline, of a budget of {format_bytes(data['budget_bytes'])}",
        ),
    ]
    if rates is not None:
        now = f"{rates['prompt_tokens']:.1f} of prompts, {rates['generation_tokens']:.1f} generated per second"
        facts.insert(4, ("now", now))
    if data.get("swap"):
        swap = data["swap"]
        held = swap["num_waiting_slots"] + swap["num_running_slots"] + swap["num_prefix_slots"]
        moved = f"{swap['swapped_out_tokens']:,} tokens out, {swap['swapped_in_tokens']:,} back"
        facts.append(("swap", f"{held} of {swap['num_slots']} slots hold copies; {moved}"))
    if data.get("streaming"):
        streaming = data["streaming"]
        layers = f"{streaming['num_streamed_layers']} of {streaming['num_layers']} layers"
        facts.append(("streaming", f"{layers}, {format_bytes(streaming['step_bytes'])} read in every step"))
    return "\n\n".join([table(facts), _requests(data["sequences"]), *_holders(data), memory_table(data)])


def _holders(data: Mapping[str, Any]) -> list[str]:
    """Tables of those who hold memory or were served beside single requests; nothing where there is nobody."""
    adapters = [row for row in data.get("adapters", ()) if row["is_loaded"]]
    sessions = data.get("sessions_kept", ())
    clients = [row for row in data.get("clients", ()) if row["client"] or row["num_requests"]]
    tables = [
        (("client", "service", "requests", "waiting"), clients, ("client", "service", "num_requests", "num_waiting")),
        (("adapter", "rank", "KV blocks", "in use"), adapters, ("name", "rank", "num_blocks", "num_continuations")),
        (
            ("session", "client", "tokens", "KV blocks kept"),
            sessions,
            ("session_id", "client", "num_tokens", "num_pinned_blocks"),
        ),
    ]
    return [
        table([head, *([_shown(row[key]) for key in keys] for row in rows)], right=(2, 3))
        for head, rows, keys in tables
        if rows
    ]


def _shown(value: Any) -> str:
    return f"{value:,.0f}" if isinstance(value, int | float) else str(value) or "-"


def _requests(sequences: Sequence[Mapping[str, Any]]) -> str:
    if not sequences:
        return "no requests"
    rows = [("request", "state", "since", "prompt", "cached", "output", "own KV", "shared KV")]
    rows += [
        (
            str(each["request_id"]),
            str(each["state"]),
            _duration(each["age_s"]),
            f"{each['num_prompt_tokens']:,}",
            f"{each['num_cached_tokens']:,}",
            f"{each['num_output_tokens']:,}",
            format_bytes(each["own_bytes"]),
            format_bytes(each["shared_bytes"]),
        )
        for each in sequences
    ]
    return table(rows, right=range(2, 8))


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
